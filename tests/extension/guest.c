/* What a host does with its own process while the library is in it.
**
**     guest CASE LIBRARY DIRECTORY
**
** The directory is empty, and so is SQLITE_TDE_HOME, which is set; each case writes the
** config.toml that it is about. Linked with the SQLite under test. Ends with 0 and one line, or
** with 1 and the line and the expression that did not hold; a signal or no end is a failure. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <unistd.h>
#include "check.h"
#include "sqlite3.h"

static const char *library, *directory;

static void in_home(const char *name, const char *text) {
  char path[600];
  snprintf(path, sizeof path, "%s/%s", getenv("SQLITE_TDE_HOME"), name);
  int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  CHECK(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text), path);
  close(file);
}

static int try_load(char **message) {
  sqlite3 *db;
  CHECK(sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE, 0) == SQLITE_OK, "");
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)0);
  int code = sqlite3_load_extension(db, library, 0, message);
  sqlite3_close(db);
  return code;
}

static void load(void) {
  char *message = 0;
  int code = try_load(&message);
  CHECK(code == SQLITE_OK, message ? message : "");
}

static const char *last(sqlite3 *db) {
  static char words[600];
  sqlite3_stmt *statement;
  snprintf(words, sizeof words, "%s", sqlite3_errmsg(db));
  if (sqlite3_prepare_v2(db, "SELECT tde_last_error()", -1, &statement, 0) == SQLITE_OK) {
    if (sqlite3_step(statement) == SQLITE_ROW && sqlite3_column_text(statement, 0)) {
      snprintf(words, sizeof words, "%s", sqlite3_column_text(statement, 0));
    }
    sqlite3_finalize(statement);
  }
  return words;
}

static int try_open(const char *name, sqlite3 **db) {
  char uri[700];
  snprintf(uri, sizeof uri, "file:%s/%s?vfs=tde", directory, name);
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI;
  int code = sqlite3_open_v2(uri, db, flags, 0);
  sqlite3_busy_timeout(*db, 10000);
  return code;
}

static sqlite3 *open_db(const char *name) {
  sqlite3 *db;
  CHECK(try_open(name, &db) == SQLITE_OK, last(db));
  return db;
}

static void must(sqlite3 *db, const char *sql) {
  CHECK(sqlite3_exec(db, sql, 0, 0, 0) == SQLITE_OK, last(db));
}

static long count(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement;
  CHECK(sqlite3_prepare_v2(db, sql, -1, &statement, 0) == SQLITE_OK, last(db));
  CHECK(sqlite3_step(statement) == SQLITE_ROW, last(db));
  long found = sqlite3_column_int64(statement, 0);
  sqlite3_finalize(statement);
  return found;
}

/* Opens it, writes a row and closes it. */
static void work(const char *name) {
  sqlite3 *db = open_db(name);
  must(db, "CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES(1)");
  sqlite3_close(db);
}

static const char COMMAND[] =
    "default_protector = \"c:k\"\n[providers.c]\ntype = \"command\"\nwrap = [\"cat\"]\n"
    "unwrap = [\"cat\"]\n";

static void configure(const char *rest) {
  char text[2000];
  snprintf(text, sizeof text, "%s%s", COMMAND, rest);
  in_home("config.toml", text);
}

static volatile int done;

static void *changes_environment(void *unused) {
  static char *few[] = {"PATH=/usr/bin:/bin", 0};
  char name[40];
  while (!done) {
    /* The array grows and moves; what it held is freed. */
    for (unsigned i = 0; !done && i < 3000; i++) {
      snprintf(name, sizeof name, "GUEST_%u", i);
      setenv(name, "a value that is somewhat longer than its name", 1);
    }
    environ = few;
  }
  return unused;
}

/* A host that changes its environment while commands are started on threads of ours. */
static void environment(void) {
  configure("[access]\nrevalidate = \"1ms\"\n");
  load();
  pthread_t thread;
  sqlite3 *db = open_db("a.db");
  must(db, "CREATE TABLE t(a)");
  CHECK(pthread_create(&thread, 0, changes_environment, 0) == 0, "");
  for (int i = 0; i < 400; i++) {
    must(db, "INSERT INTO t VALUES(1)");
    if (i % 20 == 0) work("b.db");
    usleep(1000);
  }
  done = 1;
  pthread_join(thread, 0);
  printf("%ld rows beside a changing environment\n", count(db, "SELECT count(*) FROM t"));
  sqlite3_close(db);
}

static void close_it(void *db) { sqlite3_close(db); }

static void *writes(void *name) {
  sqlite3 *db = open_db(name);
  pthread_cleanup_push(close_it, db);
  must(db, "PRAGMA cache_size = 5; CREATE TABLE IF NOT EXISTS t(a, b)");
  for (;;) {
    must(db, "INSERT INTO t VALUES(1, randomblob(3000))");
    pthread_testcancel();
  }
  pthread_cleanup_pop(1);
  return 0;
}

/* Threads that are cancelled while they are in calls of ours. */
static void cancel(void) {
  char byte;
  load();
  /* SQLite reads its first random bytes itself, by the default VFS: no call of ours. */
  sqlite3_randomness(1, &byte);
  const char *modes[] = {"DELETE", "WAL"};
  long rows = 0;
  for (int i = 0; i < 60; i++) {
    char name[20], pragma[60];
    pthread_t thread;
    void *answer;
    snprintf(name, sizeof name, "c%d.db", i % 4);
    sqlite3 *db = open_db(name);
    snprintf(pragma, sizeof pragma, "PRAGMA journal_mode = %s", modes[i % 2]);
    must(db, pragma);
    sqlite3_close(db);
    CHECK(pthread_create(&thread, 0, writes, name) == 0, "");
    usleep(1000 * (i % 17) + 200);
    CHECK(pthread_cancel(thread) == 0, "");
    CHECK(pthread_join(thread, &answer) == 0 && answer == PTHREAD_CANCELED, "not cancelled");
    db = open_db(name);
    sqlite3_stmt *statement;
    CHECK(sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &statement, 0) == SQLITE_OK, last(db));
    CHECK(sqlite3_step(statement) == SQLITE_ROW, last(db));
    CHECK(!strcmp((const char *)sqlite3_column_text(statement, 0), "ok"), "integrity");
    sqlite3_finalize(statement);
    rows += count(db, "SELECT count(*) FROM sqlite_schema");
    sqlite3_close(db);
  }
  CHECK(rows > 0, "no thread came far");
  printf("60 threads cancelled\n");
}

static void *forks(void *unused) {
  while (!done) {
    pid_t child = fork();
    if (child == 0) {
      sleep(6);
      _exit(0);
    }
    usleep(2000);
  }
  return unused;
}

/* Children of the host that inherit the descriptors of a command that is being started. */
static void fork_beside_commands(void) {
  configure("[access]\ntime_out = \"4s\"\nattempts = 1\n");
  load();
  pthread_t thread;
  signal(SIGCHLD, SIG_DFL);
  CHECK(pthread_create(&thread, 0, forks, 0) == 0, "");
  for (int i = 0; i < 60; i++) work("f.db");
  done = 1;
  pthread_join(thread, 0);
  while (waitpid(-1, 0, 0) > 0) {
  }
  sqlite3 *db = open_db("f.db");
  printf("%ld opens beside forks\n", count(db, "SELECT count(*) FROM t"));
  sqlite3_close(db);
}

static void reaps(int signal) {
  int kept = errno;
  (void)signal;
  while (waitpid(-1, 0, WNOHANG) > 0) {
  }
  errno = kept;
}

/* A host that reaps every child, or lets the system do it. */
static void sigchld(void) {
  configure("");
  load();
  for (int ignored = 0; ignored < 2; ignored++) {
    signal(SIGCHLD, ignored ? SIG_IGN : reaps);
    for (int i = 0; i < 25; i++) work("s.db");
  }
  signal(SIGCHLD, SIG_DFL);
  sqlite3 *db = open_db("s.db");
  printf("%ld opens whose commands the host reaped\n", count(db, "SELECT count(*) FROM t"));
  sqlite3_close(db);
}

/* The keystore's directory is gone for a while: an outage, not a loss. */
static void gone(void) {
  char away[600];
  const char *home = getenv("SQLITE_TDE_HOME");
  in_home("config.toml", "[access]\nrevalidate = \"1ms\"\n");
  load();
  sqlite3 *db = open_db("g.db");
  must(db, "CREATE TABLE t(a)");
  snprintf(away, sizeof away, "%s.away", home);
  for (int i = 0; i < 5; i++) {
    CHECK(rename(home, away) == 0, home);
    for (int k = 0; k < 20; k++) {
      must(db, "INSERT INTO t VALUES(1)");
      usleep(5000);
    }
    CHECK(rename(away, home) == 0, home);
    must(db, "INSERT INTO t VALUES(1)");
  }
  printf("%ld rows while the keystore came and went\n", count(db, "SELECT count(*) FROM t"));
  sqlite3_close(db);
}

static pthread_t only;
static int logged, elsewhere;

static void logs(void *unused, int code, const char *words) {
  (void)unused, (void)code, (void)words;
  __sync_fetch_and_add(&logged, 1);
  if (!pthread_equal(pthread_self(), only)) __sync_fetch_and_add(&elsewhere, 1);
}

/* SQLite ends while a provider is asked: nothing of it is called from another thread, or later. */
static void shut_down(void) {
  only = pthread_self();
  CHECK(sqlite3_config(SQLITE_CONFIG_LOG, logs, 0) == SQLITE_OK, "");
  in_home("config.toml",
          "default_protector = \"c:k\"\n[providers.c]\ntype = \"command\"\nwrap = [\"cat\"]\n"
          "unwrap = [\"sh\", \"-c\", \"sleep 0.3; test ! -e $SQLITE_TDE_HOME/broken || exit 1; cat\"]\n"
          "[access]\nrevalidate = \"1ms\"\nattempts = 1\ngrace = \"0s\"\n[audit]\nenabled = true\n");
  load();
  for (int i = 0; i < 4; i++) {
    sqlite3 *db = open_db("d.db");
    must(db, "CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES(1)");
    usleep(5000);
    must(db, "INSERT INTO t VALUES(1)");
    if (i == 3) in_home("broken", "");
    usleep(5000);
    sqlite3_exec(db, "SELECT count(*) FROM t", 0, 0, 0);
    sqlite3_close(db);
    CHECK(sqlite3_shutdown() == SQLITE_OK, "");
    usleep(450 * 1000);
    CHECK(sqlite3_initialize() == SQLITE_OK, "");
    load();
  }
  CHECK(elsewhere == 0, "the log was called on a thread of the library");
  printf("4 ends beside a slow provider\n");
}

static int in_child(void (*child)(void)) {
  int status;
  fflush(0);
  pid_t id = fork();
  CHECK(id >= 0, "fork");
  if (id == 0) {
    alarm(20);
    child();
    _exit(0);
  }
  CHECK(waitpid(id, &status, 0) == id, "waitpid");
  return status;
}

static void works_in_child(void) { work("p.db"); }

/* Workers of a server that is loaded first: a passphrase that a descriptor gives once. */
static void prefork(void) {
  int ends[2];
  CHECK(pipe(ends) == 0 && write(ends[1], "correct horse", 13) == 13, "pipe");
  close(ends[1]);
  CHECK(dup2(ends[0], 9) == 9, "dup2");
  in_home("config.toml",
          "[providers.keystore]\ntype = \"keystore\"\npassphrase = { fd = 9 }\n");
  load();
  close(9);
  close(ends[0]);
  for (int i = 0; i < 4; i++) CHECK(in_child(works_in_child) == 0, "a worker failed");
  /* Loading again, from elsewhere, changes nothing. */
  CHECK(chdir("/") == 0, "chdir");
  load();
  work("p.db");
  sqlite3 *db = open_db("p.db");
  CHECK(count(db, "SELECT count(*) FROM t") == 5, "rows");
  sqlite3_close(db);
  printf("4 workers and their parent with one passphrase\n");
}

static void *opens_slowly(void *unused) {
  work("q.db");
  return unused;
}

/* A fork while another thread derives a key: the child waits for nobody. */
static void fork_beside_derivation(void) {
  in_home("passphrase", "correct horse");
  in_home("config.toml",
          "default_protector = \"p:k\"\n[providers.p]\ntype = \"passphrase\"\n"
          "passphrase = { file = \"passphrase\" }\ncost = { memory_kib = 65536, iterations = 4 }\n");
  load();
  work("q.db");
  for (int i = 0; i < 4; i++) {
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, opens_slowly, 0) == 0, "");
    usleep(20000 * (i + 1));
    /* The child opens one of its own, with the same provider. */
    CHECK(in_child(works_in_child) == 0, "a child waits");
    pthread_join(thread, 0);
  }
  printf("4 forks beside a derivation\n");
}

static void *in_small_stack(void *unused) {
  sqlite3 *db = open_db("small.db");
  must(db, "PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS t(a, b);"
           "INSERT INTO t VALUES(1, randomblob(9000)); PRAGMA wal_checkpoint");
  count(db, "SELECT count(*) FROM t");
  sqlite3_close(db);
  return unused;
}

/* Threads with small stacks. */
static void stack(void) {
  load();
  in_small_stack(0);
  pthread_attr_t attributes;
  pthread_t thread;
  CHECK(pthread_attr_init(&attributes) == 0, "");
  CHECK(pthread_attr_setstacksize(&attributes, 64 << 10) == 0, "");
  CHECK(pthread_create(&thread, &attributes, in_small_stack, 0) == 0, "");
  pthread_join(thread, 0);
  printf("a stack of 64 KiB\n");
}

/* From here on getrandom answers EPERM, as in some sandboxes. */
static void deny_getrandom(void) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getrandom, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
  CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
}

static void sandbox(void) {
  load();
  work("r.db");
  deny_getrandom();
  work("r.db");
  work("new.db");
  printf("no getrandom\n");
}

/* A program with the rights of another group than its caller's. The caller's configuration names a
** command, which must not run with that group, and a keystore, in which no key must come to lie. */
static void privileged(void) {
  char left[600];
  sqlite3 *db;
  CHECK(getgid() != getegid(), "not privileged");
  in_home("config.toml",
          "default_protector = \"c:k\"\n[providers.c]\ntype = \"command\"\n"
          "wrap = [\"sh\", \"-c\", \"touch /tmp/sqlite-tde-guest-ran; cat\"]\nunwrap = [\"cat\"]\n");
  load();
  int code = try_open("v.db", &db);
  if (code == SQLITE_OK) code = sqlite3_exec(db, "CREATE TABLE t(a)", 0, 0, 0);
  CHECK(code != SQLITE_OK, "a database under the caller's keys");
  CHECK(strstr(last(db), "/etc/sqlite-tde"), last(db));
  CHECK(access("/tmp/sqlite-tde-guest-ran", F_OK) != 0, "the caller's command ran");
  snprintf(left, sizeof left, "%s/keystore.json", getenv("SQLITE_TDE_HOME"));
  CHECK(access(left, F_OK) != 0, "a key in the caller's keystore");
  printf("the caller of a privileged program is not believed\n");
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*run)(void);
  } CASES[] = {
      {"environment", environment}, {"cancel", cancel},
      {"fork_beside_commands", fork_beside_commands}, {"sigchld", sigchld},
      {"gone", gone}, {"shut_down", shut_down}, {"prefork", prefork},
      {"fork_beside_derivation", fork_beside_derivation}, {"stack", stack},
      {"sandbox", sandbox}, {"privileged", privileged},
  };
  if (argc != 4) return 2;
  library = argv[2];
  directory = argv[3];
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
    if (strcmp(argv[1], CASES[i].name)) continue;
    CASES[i].run();
    return 0;
  }
  fprintf(stderr, "no case is called %s\n", argv[1]);
  return 2;
}
