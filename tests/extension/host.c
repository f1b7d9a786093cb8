/* A host for the library: loads it the way an application does, and looks at what came of it.
**
**     host LIBRARY DIRECTORY [OTHER_SQLITE]
**
** The directory is empty; SQLITE_TDE_HOME is set. Linked with the SQLite under test.
** OTHER_SQLITE is a shared library of SQLite: a second copy in this process, which must be
** refused. Ends with 0 and one line, or with 1 and the line and the expression that did not
** hold. */
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "check.h"
#include "sqlite3.h"

#define MARKER "a marker that no file may hold"

static const char *library, *directory;

static char *path(const char *name) {
  static char made[4][512];
  static int next;
  char *into = made[next++ % 4];
  snprintf(into, sizeof made[0], "%s/%s", directory, name);
  return into;
}

static int load(sqlite3 *db, const char *entry, char **message) {
  *message = 0;
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)0);
  return sqlite3_load_extension(db, library, entry, message);
}

/* Loads the library in a connection of its own. */
static void load_alone(const char *entry) {
  sqlite3 *db;
  char *message;
  CHECK(sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE, 0) == SQLITE_OK, "");
  int code = load(db, entry, &message);
  CHECK(code == SQLITE_OK, message ? message : sqlite3_errmsg(db));
  sqlite3_close(db);
}

static sqlite3 *open_with(const char *name, const char *vfs) {
  sqlite3 *db;
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI;
  CHECK(sqlite3_open_v2(name, &db, flags, vfs) == SQLITE_OK, sqlite3_errmsg(db));
  return db;
}

static int run(sqlite3 *db, const char *sql) { return sqlite3_exec(db, sql, 0, 0, 0); }

static void must(sqlite3 *db, const char *sql) {
  char *message = 0;
  if (sqlite3_exec(db, sql, 0, 0, &message) != SQLITE_OK) {
    fprintf(stderr, "%s: %s\n", sql, message);
    exit(1);
  }
}

/* The first column of the first row, "" where there is none. */
static const char *ask(sqlite3 *db, const char *sql) {
  static char answer[512];
  sqlite3_stmt *statement;
  answer[0] = 0;
  CHECK(sqlite3_prepare_v2(db, sql, -1, &statement, 0) == SQLITE_OK, sqlite3_errmsg(db));
  if (sqlite3_step(statement) == SQLITE_ROW && sqlite3_column_text(statement, 0)) {
    snprintf(answer, sizeof answer, "%s", sqlite3_column_text(statement, 0));
  }
  sqlite3_finalize(statement);
  return answer;
}

static int file_holds(const char *name, const char *text) {
  FILE *file = fopen(name, "rb");
  CHECK(file, name);
  int found = 0;
  size_t len = strlen(text), kept = 0, got;
  static char buffer[1 << 16];
  while ((got = fread(buffer + kept, 1, sizeof buffer - kept, file)) > 0) {
    size_t have = kept + got;
    for (size_t i = 0; i + len <= have && !found; i++) found = !memcmp(buffer + i, text, len);
    kept = have < len - 1 ? have : len - 1;
    memmove(buffer, buffer + have - kept, kept);
  }
  fclose(file);
  return found;
}

/* How many files of the directory hold the marker. */
static int leaks(void) {
  DIR *entries = opendir(directory);
  struct dirent *entry;
  int count = 0;
  while ((entry = readdir(entries))) {
    if (strstr(entry->d_name, ".tde")) count += file_holds(path(entry->d_name), MARKER);
  }
  closedir(entries);
  return count;
}

/* How many temporary files this process has open, and how many of them hold the marker. */
static void look_at_temporary_files(int *count, int *bad) {
  DIR *entries = opendir("/proc/self/fd");
  struct dirent *entry;
  char name[64], target[512];
  *count = *bad = 0;
  while ((entry = readdir(entries))) {
    snprintf(name, sizeof name, "/proc/self/fd/%.16s", entry->d_name);
    long len = readlink(name, target, sizeof target - 1);
    if (len < 0) continue;
    target[len] = 0;
    if (!strstr(target, " (deleted)")) continue;
    ++*count;
    *bad += file_holds(name, MARKER);
  }
  closedir(entries);
}

/* Sorts more than fits in memory and looks at the files that this takes. */
static void sort_in(sqlite3 *db, int expect_bad) {
  int count, bad;
  sqlite3_stmt *statement;
  must(db, "PRAGMA temp_store=file; PRAGMA cache_size=5; CREATE TEMP TABLE x(a, b);"
           "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)"
           "INSERT INTO x SELECT '" MARKER "' || hex(zeroblob(30)), random() FROM n");
  CHECK(sqlite3_prepare_v2(db, "SELECT a, b FROM x ORDER BY b, a", -1, &statement, 0) == SQLITE_OK,
        sqlite3_errmsg(db));
  CHECK(sqlite3_step(statement) == SQLITE_ROW, sqlite3_errmsg(db));
  look_at_temporary_files(&count, &bad);
  CHECK(count > 0, "no temporary file to look at");
  CHECK((bad > 0) == expect_bad, expect_bad ? "the control found nothing" : "plaintext");
  sqlite3_finalize(statement);
}

/* The commands on keys, as PRAGMAs, functions and tables. */
static void ask_for_keys(sqlite3 *db) {
  const char *rows[][2] = {
      {"SELECT name || key_version FROM tde_key_protectors", "default1"},
      {"SELECT encryption_state_desc || key_length FROM tde_database_encryption_keys "
       "WHERE database_name = 'main'",
       "ENCRYPTED256"},
      {"SELECT count(*) FROM tde_database_encryption_keys", "1"},
      {"PRAGMA tde_auto_rotate", "on"},
      {"PRAGMA tde_lock", "locked"},
      {"SELECT tde_cipher()", "aes-256-gcm"},
      {"SELECT count(*) FROM t", "1"},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    CHECK(!strcmp(ask(db, rows[i][0]), rows[i][1]), rows[i][0]);
  }
  const char *parts[][2] = {
      {"PRAGMA tde_rotate_protector", "\"changed\":false"},
      {"SELECT tde_rotate_protector('default')", "\"changed\":false"},
      {"PRAGMA tde_check_protectors", "\"matches\":true"},
      {"SELECT tde_status('main')", "\"opened_through\":\"default\""},
  };
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    CHECK(strstr(ask(db, parts[i][0]), parts[i][1]), parts[i][0]);
  }
  const char *refused[][2] = {
      {"PRAGMA tde_nonsense", "there is no PRAGMA"},
      {"PRAGMA key='secret'", "not taken from SQL"},
      {"SELECT tde_remove_protector('default')", "the last protector"},
      {"PRAGMA tde_add_protector=nobody", "no key \"nobody\""},
  };
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
    CHECK(run(db, refused[i][0]) != SQLITE_OK, refused[i][0]);
    CHECK(strstr(sqlite3_errmsg(db), refused[i][1]), sqlite3_errmsg(db));
  }
}

/* Creates an encrypted database on each road, reads it back, and looks at its bytes. */
static void use_databases(const char *vfs, const char *prefix) {
  char name[64], sql[1024];
  snprintf(name, sizeof name, "%s.tde", prefix);
  sqlite3 *db = open_with(path(name), vfs);
  must(db, "CREATE TABLE t(x); INSERT INTO t VALUES('" MARKER "')");
  CHECK(!strcmp(ask(db, "PRAGMA tde_cipher"), "aes-256-gcm"), ask(db, "PRAGMA tde_cipher"));

  ask_for_keys(db);

  snprintf(sql, sizeof sql, "VACUUM INTO '%s'", path(strcat(strcpy(name, prefix), "-into.tde")));
  must(db, sql);

  snprintf(sql, sizeof sql, "ATTACH '%s' AS other",
           path(strcat(strcpy(name, prefix), "-attached.tde")));
  if (sqlite3_libversion_number() >= 3039000) {
    must(db, sql);
    must(db, "CREATE TABLE other.t AS SELECT * FROM t; DETACH other");
  } else {
    CHECK(run(db, sql) != SQLITE_OK, "a database was created where SQLite cannot be asked for room");
    const char *last = ask(db, "SELECT tde_last_error()");
    CHECK(strstr(last, "SQLite before 3.39 cannot create an encrypted database by ATTACH"), last);
  }

  must(db, "PRAGMA journal_mode=WAL; INSERT INTO t VALUES('" MARKER "')");
  CHECK(!strcmp(ask(db, "PRAGMA journal_mode"), "wal"), ask(db, "PRAGMA journal_mode"));
  CHECK(leaks() == 0, "while the log is open");
  sqlite3_close(db);

  db = open_with(path(strcat(strcpy(name, prefix), "-into.tde")), vfs);
  CHECK(!strcmp(ask(db, "SELECT x FROM t"), MARKER), ask(db, "SELECT x FROM t"));
  sqlite3_close(db);
  db = open_with(path(strcat(strcpy(name, prefix), ".tde")), vfs);
  CHECK(!strcmp(ask(db, "SELECT count(*) || x FROM t"), "2" MARKER), ask(db, "SELECT x FROM t"));
  CHECK(!strcmp(ask(db, "PRAGMA integrity_check"), "ok"), "");
  sqlite3_close(db);
  CHECK(leaks() == 0, "after closing");
}

static void refuse_other_copy(const char *other) {
  void *copy = dlopen(other, RTLD_NOW | RTLD_LOCAL);
  CHECK(copy, dlerror());
  int (*open)(const char *, sqlite3 **) = (int (*)(const char *, sqlite3 **))dlsym(copy, "sqlite3_open");
  int (*config)(sqlite3 *, int, ...) = (int (*)(sqlite3 *, int, ...))dlsym(copy, "sqlite3_db_config");
  int (*load_extension)(sqlite3 *, const char *, const char *, char **) =
      (int (*)(sqlite3 *, const char *, const char *, char **))dlsym(copy, "sqlite3_load_extension");
  sqlite3 *db;
  char *message = 0;
  CHECK(open(":memory:", &db) == SQLITE_OK, other);
  config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)0);
  CHECK(load_extension(db, library, "sqlite3_extension_init", &message) != SQLITE_OK, other);
  CHECK(message && strstr(message, "another copy of SQLite"), message ? message : "no message");
}

static int ran, lines_that_stay;

static int count_connection(sqlite3 *db, char **message, const void *table) {
  (void)db, (void)message, (void)table;
  ran++;
  return SQLITE_OK;
}

static void read_log(void *unused, int code, const char *line) {
  (void)unused, (void)code;
  lines_that_stay += strstr(line, "what it was first loaded with stays") != 0;
}

/* As the host's own auto-extension it is one of several, and nobody can unload it. */
static void load_for_each_connection(void) {
  void *handle = dlopen(library, RTLD_NOW);
  CHECK(handle, dlerror());
  void (*entry)(void) = (void (*)(void))dlsym(handle, "sqlite3_extension_init");
  CHECK(sqlite3_auto_extension(entry) == SQLITE_OK, "");
  CHECK(sqlite3_auto_extension((void (*)(void))count_connection) == SQLITE_OK, "");
  sqlite3 *db;
  int flags = SQLITE_OPEN_READWRITE | 0x02000000 /* SQLITE_OPEN_EXRESCODE */;
  CHECK(sqlite3_open_v2(":memory:", &db, flags, 0) == SQLITE_OK, sqlite3_errmsg(db));
  CHECK(ran == 1, "an auto-extension after it did not run");
  must(db, "SELECT tde_last_error()");
  sqlite3_close(db);
  sqlite3_reset_auto_extension();
  for (int times = 0; times < 8; times++) dlclose(handle);
  load_alone("sqlite3_extension_init");
  use_databases("tde", "kept");
}

/* A configuration that nobody can read any more is no reason to refuse a later load. */
static void load_beside_a_broken_configuration(void) {
  char name[600];
  sqlite3_shutdown();
  CHECK(sqlite3_config(SQLITE_CONFIG_LOG, read_log, (void *)0) == SQLITE_OK, "");
  CHECK(sqlite3_initialize() == SQLITE_OK, "");
  load_alone("sqlite3_extension_init");
  CHECK(lines_that_stay == 0, "");
  snprintf(name, sizeof name, "%s/config.toml", getenv("SQLITE_TDE_HOME"));
  FILE *file = fopen(name, "w");
  CHECK(file && fputs("allow_plaintext = [", file) >= 0 && fclose(file) == 0, name);
  load_alone("sqlite3_extension_init");
  CHECK(lines_that_stay == 1, "nothing was logged");
  CHECK(remove(name) == 0, name);
}

/* A VFS that the host made the default, above this one, stays unless the default is asked for. */
static void load_beneath_a_shim(void) {
  load_alone("sqlite3_tdedefault_init");
  sqlite3_vfs shim = *sqlite3_vfs_find("tde");
  shim.zName = "shim";
  CHECK(sqlite3_vfs_register(&shim, 1) == SQLITE_OK, "");
  load_alone("sqlite3_extension_init");
  CHECK(sqlite3_vfs_find(0) == &shim, "a later load displaced the host's default VFS");
  load_alone("sqlite3_tdedefault_init");
  CHECK(sqlite3_vfs_find(0) == sqlite3_vfs_find("tde"), "the default was asked for");
  sqlite3_vfs_unregister(&shim);
}

int main(int count, char **arguments) {
  CHECK(count >= 3, "host LIBRARY DIRECTORY [OTHER_SQLITE]");
  library = arguments[1];
  directory = arguments[2];
  char *message;
  sqlite3 *db = open_with(path("plain.db"), 0);
  must(db, "CREATE TABLE t(x); INSERT INTO t VALUES('" MARKER "')");
  sqlite3_vfs *platform = sqlite3_vfs_find(0);

  CHECK(load(db, "sqlite3_no_such_init", &message) == SQLITE_ERROR, "a wrong entry point");
  sqlite3_free(message);
  CHECK(sqlite3_vfs_find("tde") == 0, "a wrong entry point registered something");

  if (sqlite3_libversion_number() < 3037000) {
    for (int again = 0; again < 2; again++) {
      CHECK(load(db, "sqlite3_tdedefault_init", &message) == SQLITE_ERROR, "an old host");
      CHECK(message && strstr(message, "needs SQLite 3.37 or later"), message ? message : "");
      sqlite3_free(message);
    }
    CHECK(sqlite3_vfs_find("tde") == 0 && sqlite3_vfs_find(0) == platform, "registered");
    sqlite3_close(db);
    db = open_with(path("plain.db"), 0);
    must(db, "SELECT * FROM t");
    printf("SQLite %s: refused\n", sqlite3_libversion());
    return 0;
  }

  /* By name: not the default, and no plaintext unless asked for. */
  CHECK(load(db, 0, &message) == SQLITE_OK, message ? message : "");
  CHECK(sqlite3_vfs_find("tde") && sqlite3_vfs_find(0) == platform, "");
  CHECK(!strcmp(ask(db, "SELECT tde_last_error() IS NULL"), "1"), "in the loading connection");
  sort_in(db, 1);
  sqlite3_close(db);
  use_databases("tde", "named");
  char uri[600];
  snprintf(uri, sizeof uri, "file:%s?vfs=tde", path("plain.db"));
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI;
  CHECK(sqlite3_open_v2(uri, &db, flags, 0) == SQLITE_NOTADB, "plaintext was not refused");
  sqlite3_close(db);
  strcat(uri, "&tde_plaintext=allow");
  CHECK(sqlite3_open_v2(uri, &db, flags, 0) == SQLITE_OK, sqlite3_errmsg(db));
  CHECK(!strcmp(ask(db, "SELECT x FROM t"), MARKER), "");
  sqlite3_close(db);

  /* As the default, again and again: sqlite3_shutdown forgets it. */
  for (int round = 0; round < 3; round++) {
    char prefix[32], detail[32];
    snprintf(prefix, sizeof prefix, "round%d", round);
    snprintf(detail, sizeof detail, "round %d", round);
    sqlite3_shutdown();
    CHECK(sqlite3_initialize() == SQLITE_OK, detail);
    CHECK(sqlite3_vfs_find(0) == platform, detail);
    load_alone("sqlite3_tdedefault_init");
    CHECK(sqlite3_vfs_find(0) == sqlite3_vfs_find("tde"), detail);
    load_alone("sqlite3_extension_init");
    CHECK(sqlite3_vfs_find(0) == sqlite3_vfs_find("tde"), "the other entry point took the default");
    use_databases(0, prefix);
    db = open_with(path("plain.db"), 0);
    CHECK(!strcmp(ask(db, "SELECT x FROM t"), MARKER), detail);
    must(db, "SELECT tde_last_error()");
    sort_in(db, 0);
    sqlite3_close(db);
  }
  load_for_each_connection();
  load_beside_a_broken_configuration();
  load_beneath_a_shim();
  CHECK(file_holds(path("plain.db"), MARKER), "the control: plaintext is found where it is");
  if (count > 3) refuse_other_copy(arguments[3]);
  printf("SQLite %s: loaded\n", sqlite3_libversion());
  return 0;
}
