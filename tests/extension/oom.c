/* Memory runs out in the host, at each allocation in turn.
**
**     oom LIBRARY DIRECTORY [STEP]
**
** SQLITE_TDE_HOME is set; the directory is empty. Each piece of work below is done in a child of
** its own for each of its allocations, of SQLite's and of the library's, which fails once, and in
** another one from there on. STEP leaves some out. The answer is success or an error; whatever it
** is, the process goes on, what was committed is there, and the same work succeeds afterwards. The
** same under a limit of the address space. Linked with the SQLite under test.
**
** Ends with 0 and one line, or with 1 and what did not hold. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "sqlite3.h"

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

/* Allocations until the one that fails; below zero none does. */
static volatile long left = -1;
static volatile int for_ever, armed;
static volatile long seen;

static int fails(void) {
  if (!armed) return 0;
  long number = __sync_fetch_and_add(&seen, 1);
  return left >= 0 && (for_ever ? number >= left : number == left);
}

#define OR_NONE(call) \
  if (fails()) { \
    errno = ENOMEM; \
    return NULL; \
  } \
  return call

void *malloc(size_t len) { OR_NONE(__libc_malloc(len)); }
void *calloc(size_t count, size_t len) { OR_NONE(__libc_calloc(count, len)); }
void *realloc(void *old, size_t len) { OR_NONE(__libc_realloc(old, len)); }
void *memalign(size_t align, size_t len) { OR_NONE(__libc_memalign(align, len)); }
void *aligned_alloc(size_t align, size_t len) { OR_NONE(__libc_memalign(align, len)); }
int posix_memalign(void **out, size_t align, size_t len) {
  void *made = fails() ? NULL : __libc_memalign(align, len);
  if (!made) return ENOMEM;
  *out = made;
  return 0;
}

static const char *library, *directory;
static const char *about = "";

#define CHECK(what, detail) \
  do { \
    if (!(what)) { \
      armed = 0; \
      fprintf(stderr, "%s:%d: %s: %s: %s\n", __FILE__, __LINE__, about, #what, (detail)); \
      _exit(1); \
    } \
  } while (0)

static int try_open(const char *name, sqlite3 **db) {
  char uri[700];
  snprintf(uri, sizeof uri, "file:%s/%s?vfs=tde", directory, name);
  return sqlite3_open_v2(uri, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, 0);
}

static int run(sqlite3 *db, const char *sql) { return sqlite3_exec(db, sql, 0, 0, 0); }

static int load(void) {
  sqlite3 *db;
  int code = sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE, 0);
  if (code == SQLITE_OK) {
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)0);
    code = sqlite3_load_extension(db, library, 0, 0);
  }
  sqlite3_close(db);
  return code;
}

static long count(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement;
  long found = -1;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, 0) == SQLITE_OK) {
    if (sqlite3_step(statement) == SQLITE_ROW) found = sqlite3_column_int64(statement, 0);
  }
  sqlite3_finalize(statement);
  return found;
}

/* A database with a hundred rows. */
static void prepare(const char *mode) {
  sqlite3 *db;
  char sql[300];
  CHECK(try_open("o.db", &db) == SQLITE_OK, "prepared");
  snprintf(sql, sizeof sql, "PRAGMA journal_mode = %s", mode);
  CHECK(run(db, sql) == SQLITE_OK, sqlite3_errmsg(db));
  CHECK(run(db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b);"
                "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)"
                "INSERT INTO t SELECT i, randomblob(700) FROM n") == SQLITE_OK,
        sqlite3_errmsg(db));
  sqlite3_close(db);
}

/* A process ends in the middle: 40 commits are in the log alone, or a transaction in the file. */
static void crash(const char *mode) {
  int status;
  fflush(0);
  pid_t id = fork();
  if (id == 0) {
    sqlite3 *db;
    CHECK(try_open("o.db", &db) == SQLITE_OK, "to crash");
    if (!strcmp(mode, "WAL")) {
      CHECK(run(db, "PRAGMA wal_autocheckpoint = 0") == SQLITE_OK, "no checkpoint");
      for (int i = 0; i < 40; i++) {
        CHECK(run(db, "INSERT INTO t(b) VALUES(randomblob(700))") == SQLITE_OK, "a commit");
      }
    } else {
      CHECK(run(db, "PRAGMA cache_size = 4; BEGIN; UPDATE t SET b = 0; DELETE FROM t WHERE a > 50")
                == SQLITE_OK, "a transaction");
    }
    _exit(0);
  }
  CHECK(id > 0 && waitpid(id, &status, 0) == id && status == 0, "the crash");
}

static const struct {
  const char *name, *mode, *sql;
} WORK[] = {
    {"load", 0, 0},
    {"create", 0, "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b);"
                  "REPLACE INTO t VALUES(1, 2)"},
    {"read", "DELETE", "SELECT count(b) FROM t"},
    {"write", "DELETE", "UPDATE t SET b = randomblob(800) WHERE a % 3 = 0"},
    {"spill", "DELETE", "PRAGMA cache_size = 4; UPDATE t SET b = randomblob(900)"},
    {"persist", "PERSIST", "UPDATE t SET b = randomblob(800)"},
    {"truncate", "TRUNCATE", "UPDATE t SET b = randomblob(800)"},
    {"memory journal", "MEMORY", "UPDATE t SET b = randomblob(800)"},
    {"rollback", "DELETE", "PRAGMA cache_size = 4; BEGIN; UPDATE t SET b = 0; ROLLBACK"},
    {"log", "WAL", "UPDATE t SET b = randomblob(800)"},
    {"log spill", "WAL", "PRAGMA cache_size = 4; BEGIN; UPDATE t SET b = randomblob(900);"
                         "SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT"},
    {"checkpoint", "WAL", "INSERT INTO t(b) VALUES(1); PRAGMA wal_checkpoint(TRUNCATE)"},
    {"vacuum", "DELETE", "VACUUM"},
    {"temporary", "DELETE", "PRAGMA temp_store = FILE; CREATE TEMP TABLE x AS SELECT * FROM t;"
                            "SELECT count(*) FROM (SELECT DISTINCT b FROM x)"},
    {"questions", "WAL", "PRAGMA tde_status; SELECT tde_status('main'); SELECT tde_cipher();"
                         "SELECT * FROM tde_key_protectors; PRAGMA tde_check_protectors"},
    {"lock", "DELETE", "PRAGMA tde_lock; SELECT count(*) FROM t"},
    {"rotate", "WAL", "PRAGMA tde_rotate_protector; PRAGMA tde_auto_rotate = off"},
    {"crash: recovery", "WAL", "SELECT count(*) FROM t"},
    {"crash: rollback", "DELETE", "SELECT count(*) FROM t"},
    {"attach", "DELETE", "ATTACH ':memory:' AS m; CREATE TABLE m.c AS SELECT * FROM t"},
};

static int crashes(size_t number) { return !strncmp(WORK[number].name, "crash", 5); }

/* Does one piece of work, and answers SQLite's code. */
static int work(size_t number) {
  sqlite3 *db = 0;
  if (!WORK[number].sql) return load();
  int code = try_open("o.db", &db);
  if (code == SQLITE_OK) code = run(db, WORK[number].sql);
  if (db) sqlite3_close(db);
  return code;
}

static void empty(void) {
  char command[900];
  snprintf(command, sizeof command, "rm -rf '%s'/* '%s'/*", directory, getenv("SQLITE_TDE_HOME"));
  CHECK(system(command) == 0, command);
}

struct result {
  long allocations, failed, refused, ended;
};

/* In a child: the work with a failure at `place`, and everything that must hold afterwards. */
static void child(size_t number, long place, int ever, long limit, struct result *result) {
  if (WORK[number].sql) {
    CHECK(load() == SQLITE_OK, "load");
    if (WORK[number].mode) prepare(WORK[number].mode);
    if (crashes(number)) crash(WORK[number].mode);
  }
  struct rlimit all, little;
  getrlimit(RLIMIT_AS, &all);
  if (limit >= 0) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%ld", &pages) == 1, "statm");
    fclose(file);
    little = all;
    little.rlim_cur = pages * sysconf(_SC_PAGESIZE) + limit;
    CHECK(setrlimit(RLIMIT_AS, &little) == 0, "limit");
  }
  left = place;
  for_ever = ever;
  seen = 0;
  armed = 1;
  int code = work(number);
  armed = 0;
  CHECK(setrlimit(RLIMIT_AS, &all) == 0, "limit");
  result->allocations = seen;
  result->failed += place < 0 ? 0 : seen > place;
  result->refused += code != SQLITE_OK;

  /* The process goes on: the same work, and what was committed. */
  code = work(number);
  CHECK(code == SQLITE_OK, "the second time");
  if (WORK[number].mode) {
    sqlite3 *db;
    CHECK(try_open("o.db", &db) == SQLITE_OK, "opened again");
    CHECK(count(db, "SELECT count(*) FROM t") >= 100, sqlite3_errmsg(db));
    if (crashes(number)) {
      long rows = strcmp(WORK[number].mode, "WAL") ? 100 : 140;
      CHECK(count(db, "SELECT count(*) FROM t WHERE length(b) = 700") == rows, "rows are lost");
    }
    CHECK(count(db, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'") == 0,
          sqlite3_errmsg(db));
    sqlite3_close(db);
  }
  _exit(0);
}

static void in_child(size_t number, long place, int ever, long limit, struct result *result) {
  static char words[200];
  int status;
  snprintf(words, sizeof words, "%s, allocation %ld%s, limit %ld", WORK[number].name, place,
           ever ? " and all that follow" : "", limit);
  about = words;
  empty();
  fflush(0);
  pid_t id = fork();
  if (id == 0) {
    alarm(60);
    child(number, place, ever, limit, result);
  }
  CHECK(id > 0 && waitpid(id, &status, 0) == id, "fork");
  /* The C library has no way to say that there is no memory for a thread's local data. */
  if (!WORK[number].sql && WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    result->ended++;
    return;
  }
  if (status != 0) {
    fprintf(stderr, "%s: status %#x\n", words, status);
    if (!getenv("OOM_GO_ON")) exit(1);
    result->failed += 1000000;
  }
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  library = argv[1];
  directory = argv[2];
  long step = argc > 3 ? atol(argv[3]) : 1;
  struct result *result = mmap(0, sizeof *result, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  long places = 0;
  for (size_t number = 0; number < sizeof WORK / sizeof *WORK; number++) {
    in_child(number, -1, 0, -1, result);
    long all = result->allocations;
    for (long place = number % step; place < all + 2; place += step) {
      for (int ever = 0; ever < 2; ever++, places++) in_child(number, place, ever, -1, result);
    }
    for (long kib = 0; kib <= 1024; kib = kib < 16 ? kib + 16 : kib + (kib * step + 9) / 10, places++) {
      if (WORK[number].sql) in_child(number, -1, 0, kib << 10, result);
    }
  }
  CHECK(result->ended <= 2, "the C library ended the process at more than one place");
  printf("%ld places where memory ran out, %ld refused\n", places, result->refused);
  return 0;
}
