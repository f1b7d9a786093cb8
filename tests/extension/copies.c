/* A host that loads the library twice, from two files, and one that loads one copy alone.
**
**     copies write DATABASE ONE OTHER   loads ONE and OTHER as the default, writes
**     copies read DATABASE ONE          loads ONE, reads
**
** SQLITE_TDE_HOME is set. Ends with 0 and one line, or with 1 and what went wrong. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sqlite3.h"

static void fail(const char *what, const char *why) {
  fprintf(stderr, "copies: %s: %s\n", what, why ? why : "");
  exit(1);
}

static void load(const char *library) {
  sqlite3 *db;
  char *message = 0;
  if (sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE, 0) != SQLITE_OK) fail("open", "");
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)0);
  if (sqlite3_load_extension(db, library, "sqlite3_tdedefault_init", &message) != SQLITE_OK) {
    fail(library, message);
  }
  sqlite3_close(db);
}

/* The first column of the last row that the statements answer. */
static const char *ask(sqlite3 *db, const char *sql) {
  static char answer[256];
  sqlite3_stmt *statement;
  answer[0] = 0;
  while (*sql) {
    if (sqlite3_prepare_v2(db, sql, -1, &statement, &sql) != SQLITE_OK) {
      fail("prepare", sqlite3_errmsg(db));
    }
    int code;
    while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
      const char *text = (const char *)sqlite3_column_text(statement, 0);
      snprintf(answer, sizeof answer, "%s", text ? text : "");
    }
    if (code != SQLITE_DONE) fail("step", sqlite3_errmsg(db));
    sqlite3_finalize(statement);
  }
  return answer;
}

int main(int argc, char **argv) {
  sqlite3 *db;
  if (argc < 4) fail("usage", "");
  int writes = !strcmp(argv[1], "write");
  for (int i = 3; i < argc; i++) load(argv[i]);
  /* Once more: each copy may be loaded by any connection. */
  for (int i = 3; i < argc; i++) load(argv[i]);
  for (int round = 0; round < 2; round++) {
    if (sqlite3_open(argv[2], &db) != SQLITE_OK) fail(argv[2], sqlite3_errmsg(db));
    if (writes) {
      ask(db, "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(a);"
              "INSERT INTO t VALUES('a marker that no file may hold')");
    }
    const char *cipher = ask(db, "SELECT tde_cipher()");
    if (strcmp(cipher, "aes-256-gcm")) fail("tde_cipher()", cipher);
    const char *state = ask(db, "SELECT encryption_state_desc FROM tde_database_encryption_keys "
                                "WHERE database_name = 'main'");
    if (strcmp(state, "ENCRYPTED")) fail("state", state);
    if (strcmp(ask(db, "PRAGMA integrity_check"), "ok")) fail("integrity_check", "");
    printf("%s%s", round ? " " : "", ask(db, "SELECT count(*) FROM t"));
    sqlite3_close(db);
  }
  printf("\n");
  return 0;
}
