/* See differential.h.
**
**     differential LIBRARY [--histories N] [--first SEED] [--seconds N]   a campaign
**     differential LIBRARY --seed SEED [--shrink] [--trace]               one history
**     differential LIBRARY --replay FILE.. [--shrink] [--trace]           histories from files
**
** SQLITE_TDE_HOME is set. Works below /dev/shm where it can. Ends with 1 after a failure. */
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "differential.h"

static const char *library;
static int excused, lost, verbose;
static char last_error[400];
static char base_dir[150];
static char now_running[300];

static void crashed(int number) {
  char text[400];
  int length = snprintf(text, sizeof text, "SQLite %s: signal %d in %s\n", sqlite3_libversion(), number,
    now_running);
  if (write(2, text, (size_t)length) < 0) _exit(3);
  signal(number, SIG_DFL);
  raise(number);
}

static void load(void) {
  sqlite3 *db;
  char *message = 0;
  shim_register();
  if (sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE, 0) != SQLITE_OK) exit(2);
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)0);
  if (sqlite3_load_extension(db, library, 0, &message) != SQLITE_OK) {
    fprintf(stderr, "%s: %s\n", library, message ? message : "?");
    exit(2);
  }
  sqlite3_close(db);
}

int script_read(struct script *script, const char *path) {
  char line[1000];
  FILE *file = fopen(path, "r");
  script->count = 0;
  if (!file) return 0;
  while (fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    if (line[0] && line[0] != '#') script_add(script, "%s", line);
  }
  fclose(file);
  return 1;
}

/* Whether plain SQLite fails a check of its own, with this limit or fault or one close to it. */
static int plain_fails_too(const struct script *script) {
  for (int other = -1; other < 200; other++) {
    if (run_history(script, 1, other, 0).plain_lost) return 1;
  }
  return 0;
}

static int has_faults(const struct script *script) {
  for (int i = 0; i < script->count; i++) {
    if (!strncmp(script->lines[i], "limit", 5) || !strncmp(script->lines[i], "fault", 5)) return 1;
  }
  return 0;
}

/* What the library says of its last error. */
static void explain(char into[400]) {
  sqlite3 *db = 0;
  sqlite3_stmt *said = 0;
  into[0] = 0;
  if (sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE, 0) == SQLITE_OK
      && sqlite3_prepare_v2(db, "SELECT tde_last_error()", -1, &said, 0) == SQLITE_OK
      && sqlite3_step(said) == SQLITE_ROW && sqlite3_column_text(said, 0)) {
    snprintf(into, 400, "; its last error: %s", sqlite3_column_text(said, 0));
  }
  sqlite3_finalize(said);
  sqlite3_close(db);
}

static struct verdict judge(const struct script *script, int trace) {
  struct verdict verdict;
  alarm(60);
  verdict = run_history(script, 0, -1, trace);
  if (verdict.failed) explain(last_error);
  if (verdict.plain_lost) lost++;
  if (verdict.plain_lost && verbose) printf("%s: %s (step %d)\n", now_running, verdict.why, verdict.step);
  if (verdict.failed && has_faults(script) && plain_fails_too(script)) {
    verdict.failed = 0;
    excused++;
    if (verbose) printf("%s: excused: %s (step %d)\n", now_running, verdict.why, verdict.step);
  }
  alarm(0);
  return verdict;
}

/* In a process of its own, so that a crash of it is a failure like others. */
static int fails_apart(const struct script *script) {
  int status;
  pid_t child = fork();
  if (child == 0) {
    fclose(stderr);
    load();
    _exit(judge(script, 0).failed);
  }
  if (child < 0 || waitpid(child, &status, 0) != child) return 0;
  return status != 0;
}

static int try_without(struct script *script, int from, int count) {
  struct script less = {0};
  for (int i = 0; i < script->count; i++) {
    if (i < from || i >= from + count) less.lines[less.count++] = script->lines[i];
  }
  if (!fails_apart(&less)) return 0;
  *script = less;
  return 1;
}

/* Makes the number at `at` of line `i` smaller where the history still fails. */
static int try_number(struct script *script, int i, size_t at) {
  char *line = script->lines[i], *end, made[1000];
  long value = strtol(line + at, &end, 10);
  long tries[3] = {1, value / 4, value / 2};
  if (value < 8) return 0;
  for (int k = 0; k < 3; k++) {
    snprintf(made, sizeof made, "%.*s%ld%s", (int)at, line, tries[k], end);
    script->lines[i] = made;
    if (fails_apart(script)) {
      script->lines[i] = strdup(made);
      return 1;
    }
    script->lines[i] = line;
  }
  return 0;
}

static void shrink(struct script *script) {
  int changed = 1;
  while (changed) {
    changed = 0;
    for (int count = script->count / 2; count >= 1; count /= 2) {
      for (int from = script->count - count; from >= 0; from -= count) {
        changed |= try_without(script, from, count);
      }
    }
  }
  for (int i = 0; i < script->count; i++) {
    for (size_t at = 1; at < strlen(script->lines[i]); at++) {
      const char *line = script->lines[i];
      int begins = line[at] >= '1' && line[at] <= '9' && strchr(" (=,<>%+*", line[at - 1]);
      if (begins && at > 8 && !strstr(line, "page_size")) {
        while (try_number(script, i, at)) {}
      }
    }
  }
}

static void print_script(const struct script *script) {
  for (int i = 0; i < script->count; i++) printf("%s\n", script->lines[i]);
}

/* Runs one history. The answer is whether it failed. */
static int one(struct script *script, const char *name, int shrinking, int trace) {
  struct verdict verdict;
  snprintf(now_running, sizeof now_running, "%s", name);
  if (shrinking) {
    if (!fails_apart(script)) {
      printf("SQLite %s: %s: holds\n", sqlite3_libversion(), name);
      return 0;
    }
    shrink(script);
    printf("# %s, shrunk on SQLite %s\n", name, sqlite3_libversion());
    print_script(script);
    fflush(stdout);
    load();
  }
  verdict = judge(script, trace);
  if (trace && verdict.plain_lost) printf("plain lost: step %d: %s\n", verdict.step, verdict.why);
  if (!verdict.failed) return 0;
  printf("SQLite %s: %s: step %d (%s): %s%s\n", sqlite3_libversion(), name, verdict.step,
    verdict.step > 0 ? script->lines[verdict.step - 1] : "", verdict.why, last_error);
  fflush(stdout);
  return 1;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int count, char **arguments) {
  static struct script script;
  long histories = 0, done = 0;
  uint64_t first = 1, seed = 0;
  int shrinking = 0, trace = 0, failures = 0, most = 1, replay = 0, print = 0;
  double limit = 0, begun;
  if (count < 3) return 2;
  library = arguments[1];
  for (int i = 2; i < count; i++) {
    const char *option = arguments[i], *value = i + 1 < count ? arguments[i + 1] : "";
    if (!strcmp(option, "--shrink")) shrinking = 1;
    else if (!strcmp(option, "--trace")) trace = 1;
    else if (!strcmp(option, "--verbose")) verbose = 1;
    else if (!strcmp(option, "--print")) print = 1;
    else if (!strcmp(option, "--replay")) { replay = i + 1; break; }
    else if (!strcmp(option, "--histories")) histories = atol(value), i++;
    else if (!strcmp(option, "--first")) first = strtoull(value, 0, 10), i++;
    else if (!strcmp(option, "--seed")) seed = strtoull(value, 0, 10), i++;
    else if (!strcmp(option, "--seconds")) limit = atof(value), i++;
    else if (!strcmp(option, "--failures")) most = atoi(value), i++;
    else return 2;
  }
  snprintf(base_dir, sizeof base_dir, "%s/tde-differential-XXXXXX",
    access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  if (!mkdtemp(base_dir)) return 2;
  world_setup(base_dir);
  setenv("SQLITE_TMPDIR", base_dir, 1);
  for (int i = 0; i < 5; i++) {
    static const int signals[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGALRM};
    signal(signals[i], crashed);
  }
  sqlite3_config(SQLITE_CONFIG_STMTJRNL_SPILL, 2048);
  if (!shrinking) load();
  begun = seconds();
  if (replay) {
    for (int i = replay; i < count; i++) {
      if (!strcmp(arguments[i], "--shrink") || !strcmp(arguments[i], "--trace")) continue;
      if (!script_read(&script, arguments[i])) {
        fprintf(stderr, "%s: %s\n", arguments[i], strerror(errno));
        return 2;
      }
      failures += one(&script, arguments[i], shrinking, trace);
      done++;
    }
  } else if (seed) {
    char name[100];
    snprintf(name, sizeof name, "seed %llu", (unsigned long long)seed);
    generate(&script, seed);
    if (print) print_script(&script);
    failures += one(&script, name, shrinking, trace);
    done = 1;
  } else {
    for (; done < histories && (limit <= 0 || seconds() - begun < limit) && failures < most; done++) {
      char name[100];
      snprintf(name, sizeof name, "seed %llu", (unsigned long long)first + done);
      generate(&script, first + (uint64_t)done);
      failures += one(&script, name, 0, 0);
      script_free(&script);
    }
  }
  printf("SQLite %s: %ld histories, %d failed, %d excused by plain SQLite, plain lost %d, %.0f a second\n",
    sqlite3_libversion(), done, failures, excused, lost, (double)done / (seconds() - begun + 1e-9));
  world_remove();
  rmdir(base_dir);
  return failures > 0;
}
