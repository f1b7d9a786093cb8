/* A program without the library beside an application that has loaded it, both on the SQLite
** under test.
**
**     stranger LIBRARY DIRECTORY
**
** The directory is empty; SQLITE_TDE_HOME is set. The application is this program, started
** again; it stops at each moment until it is told to go on. The stranger opens the file at each
** moment, is told that it is no database, stays, and goes at each later moment. Then everything
** that was committed must be there. Ends with 0 and one line, or with 1 and what did not hold. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "sqlite3.h"

#define CHECK(what, detail) \
  do { \
    if (!(what)) { \
      fprintf(stderr, "%s:%d: %s: %s: %s\n", __FILE__, __LINE__, #what, about, (detail)); \
      exit(1); \
    } \
  } while (0)

static char about[200] = "", file[512];

static sqlite3 *open_encrypted(const char *library) {
  sqlite3 *db;
  char *message = 0;
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI;
  CHECK(sqlite3_open_v2(":memory:", &db, flags, 0) == SQLITE_OK, "");
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)0);
  int code = sqlite3_load_extension(db, library, 0, &message);
  CHECK(code == SQLITE_OK, message ? message : "");
  sqlite3_close(db);
  CHECK(sqlite3_open_v2(file, &db, flags, "tde") == SQLITE_OK, sqlite3_errmsg(db));
  return db;
}

static void must(sqlite3 *db, const char *sql) {
  CHECK(sqlite3_exec(db, sql, 0, 0, 0) == SQLITE_OK, sqlite3_errmsg(db));
}

static int number(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement;
  CHECK(sqlite3_prepare_v2(db, sql, -1, &statement, 0) == SQLITE_OK, sqlite3_errmsg(db));
  CHECK(sqlite3_step(statement) == SQLITE_ROW, sqlite3_errmsg(db));
  int value = sqlite3_column_int(statement, 0);
  sqlite3_finalize(statement);
  return value;
}

/* Says that a moment is there, and waits until the other side has used it. */
static void moment(void) {
  char byte = 'm';
  if (write(1, &byte, 1) != 1 || read(0, &byte, 1) != 1) exit(1);
}

#define ROWS \
  "WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 100) " \
  "INSERT INTO t SELECT 1, zeroblob(300) FROM i;"

static int application(const char *library, const char *mode) {
  char sql[200];
  sqlite3 *db = open_encrypted(library);
  snprintf(sql, sizeof sql, "PRAGMA page_size=1024; PRAGMA journal_mode=%s; PRAGMA cache_size=5;", mode);
  must(db, sql);
  must(db, "PRAGMA wal_autocheckpoint=0; PRAGMA busy_timeout=10000; CREATE TABLE t(a, b);" ROWS);
  moment();
  must(db, ROWS);
  moment();
  must(db, "BEGIN; UPDATE t SET a = 2");
  moment();
  must(db, "COMMIT");
  moment();
  must(db, "PRAGMA wal_checkpoint");
  moment();
  sqlite3_close(db);
  return 0;
}

/* What the database holds: two digits for each, twice as much after the update. */
static int verify(const char *library, int wanted) {
  sqlite3 *db = open_encrypted(library);
  CHECK(number(db, "SELECT sum(a) FROM t") == wanted, "another sum");
  CHECK(number(db, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'") == 1, "");
  must(db, "INSERT INTO t VALUES(0, 0)");
  sqlite3_close(db);
  return 0;
}

#define MOMENTS 5

static int run(const char *program, const char *library, const char *a, const char *b, int in, int out) {
  int child = fork();
  if (child == 0) {
    if (in >= 0) { dup2(in, 0); dup2(out, 1); }
    execl(program, program, library, file, a, b, (char *)0);
    _exit(127);
  }
  return child;
}

/* What a stranger is told and may do. */
static sqlite3 *look(void) {
  sqlite3 *db;
  CHECK(sqlite3_open_v2(file, &db, SQLITE_OPEN_READWRITE, "unix") == SQLITE_OK, "");
  static const char *tries[] = {
    "SELECT * FROM sqlite_schema", "PRAGMA journal_mode=WAL", "PRAGMA journal_mode=PERSIST",
    "PRAGMA journal_mode=DELETE", "BEGIN IMMEDIATE; CREATE TABLE z(a)", "VACUUM", "PRAGMA wal_checkpoint",
  };
  for (unsigned i = 0; i < sizeof tries / sizeof *tries; i++) {
    int code = sqlite3_exec(db, tries[i], 0, 0, 0);
    CHECK(code == SQLITE_NOTADB || code == SQLITE_BUSY || code == SQLITE_ERROR, tries[i]);
    sqlite3_exec(db, "ROLLBACK", 0, 0, 0);
  }
  for (int how = 0; how < 4; how++) sqlite3_wal_checkpoint_v2(db, 0, how, 0, 0);
  return db;
}

/* The stranger comes at moment `comes`, goes at `goes`; the application is killed at `end`, or
** ends. */
static void order(const char *program, const char *library, const char *mode, int comes, int goes, int end) {
  int to[2], from[2], status;
  char byte = 'g', wanted[20];
  sqlite3 *stranger = 0;
  snprintf(about, sizeof about, "%s, comes at %d, goes at %d, killed at %d", mode, comes, goes, end);
  static const char *suffixes[] = {"", "-journal", "-wal", "-tdewal", "-shm"};
  for (unsigned i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
    char name[600];
    snprintf(name, sizeof name, "%s%s", file, suffixes[i]);
    unlink(name);
  }
  if (pipe(to) || pipe(from)) exit(1);
  int child = run(program, library, "application", mode, to[0], from[1]);
  close(to[0]);
  close(from[1]);
  for (int at = 1; at <= MOMENTS + 1; at++) {
    if (at <= end) {
      CHECK(read(from[0], &byte, 1) == (at <= MOMENTS), "the application stopped");
    }
    if (at == end) {
      if (at <= MOMENTS) kill(child, SIGKILL);
      waitpid(child, &status, 0);
      CHECK(at <= MOMENTS || status == 0, "the application failed");
    }
    if (at == comes) stranger = look();
    if (at == goes) sqlite3_close(stranger);
    if (at < end && write(to[1], &byte, 1) != 1) exit(1);
  }
  close(to[1]);
  close(from[0]);
  snprintf(wanted, sizeof wanted, "%d", end == 1 ? 100 : end <= 3 ? 200 : 400);
  waitpid(run(program, library, "verify", wanted, -1, -1), &status, 0);
  CHECK(status == 0, "what was committed is not there");
}

int main(int count, char **args) {
  const char *modes[] = {"WAL", "DELETE", "TRUNCATE", "PERSIST"};
  int orders = 0;
  if (count == 5) {
    snprintf(file, sizeof file, "%s", args[2]);
    return strcmp(args[3], "verify") ? application(args[1], args[4]) : verify(args[1], atoi(args[4]));
  }
  if (count != 3) return 2;
  snprintf(file, sizeof file, "%s/app.db", args[2]);
  for (int mode = 0; mode < 4; mode++) {
    for (int end = 1; end <= MOMENTS + 1; end++) {
      for (int comes = 1; comes <= MOMENTS + 1; comes++) {
        for (int goes = comes; goes <= MOMENTS + 1; goes++, orders++) {
          order(args[0], args[1], modes[mode], comes, goes, end);
        }
      }
    }
  }
  printf("SQLite %s: %d orders beside a stranger\n", sqlite3_libversion(), orders);
  return 0;
}
