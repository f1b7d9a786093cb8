/* See differential.h.
**
**     differential LIBRARY [--histories N] [--first SEED] [--seconds N]   a campaign
**     differential LIBRARY --seed SEED [--shrink] [--trace]               one history
**     differential LIBRARY --replay FILE.. [--shrink] [--trace]           histories from files
**
** SQLITE_TDE_HOME is set. Works below /dev/shm where it can. Ends with 1 after a failure. A
** campaign runs in a process apart, and goes on in another one after a crash, until ten
** histories have failed. A crash while plain SQLite works, which it repeats by itself, is plain
** SQLite's. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "differential.h"

const char *library;
static int verbose;
/* What processes of a campaign share. */
static struct progress {
  long done;                      /* histories */
  int failures, excused, lost;
  int plain_crashed, side;        /* the side that worked when a process crashed, or -1 */
  int load_failed;
} *progress;
static char last_error[400];
static char base_dir[150];
static char now_running[300];

static void crashed(int number) {
  char text[400];
  int length = snprintf(text, sizeof text, "SQLite %s: signal %d in %s\n", sqlite3_libversion(), number,
    now_running);
  progress->side = current_side;
  if (write(2, text, (size_t)length) < 0) _exit(3);
  signal(number, SIG_DFL);
  raise(number);
}

void load_library(const char *path) {
  sqlite3 *db;
  char *message = 0;
  progress->load_failed = 1;
  if (sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE, 0) != SQLITE_OK) exit(2);
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)0);
  if (sqlite3_load_extension(db, path, 0, &message) != SQLITE_OK) {
    fprintf(stderr, "%s: %s\n", path, message ? message : "?");
    exit(2);
  }
  sqlite3_close(db);
  progress->load_failed = 0;
}

static void load(void) {
  shim_register();
  load_library(library);
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
  /* Plain SQLite writes more often: what meets a late write there meets an early one here. */
  for (int other = -1; other < 240; other += other < 40 ? 1 : 2) {
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
  if (verdict.plain_lost) progress->lost++;
  if (verdict.plain_lost && verbose) printf("%s: %s (step %d)\n", now_running, verdict.why, verdict.step);
  if (verdict.failed && has_faults(script) && plain_fails_too(script)) {
    verdict.failed = 0;
    progress->excused++;
    if (verbose) printf("%s: excused: %s (step %d)\n", now_running, verdict.why, verdict.step);
  }
  alarm(0);
  return verdict;
}

/* In a process of its own, so that a crash of it is a failure like others. */
static int fails_apart(const struct script *script) {
  int status;
  pid_t child;
  progress->side = -1;
  child = fork();
  if (child == 0) {
    int failed;
    if (!freopen("/dev/null", "w", stderr)) _exit(3);
    load();
    failed = judge(script, 0).failed;
    helpers_end();
    _exit(failed);
  }
  if (child < 0 || waitpid(child, &status, 0) != child) return 0;
  return WIFSIGNALED(status) ? progress->side != PLAIN : status != 0;
}

/* Whether plain SQLite crashes in `script` without the other side. */
static int plain_crashes(const struct script *script) {
  int status = 0;
  for (int i = 0; i < 3; i++) {
    pid_t child = fork();
    if (child == 0) {
      shim_register();
      if (!freopen("/dev/null", "w", stderr)) _exit(3);
      alarm(60);
      run_history(script, 1, -1, 0);
      _exit(0);
    }
    if (child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status)) return 1;
  }
  return 0;
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

struct campaign {
  uint64_t first;
  long histories;
  double until;                   /* in seconds(), or 0 */
  int failures;                   /* it ends after so many */
};

static int is_over(const struct campaign *campaign) {
  return progress->done >= campaign->histories || progress->failures >= campaign->failures
    || (campaign->until > 0 && seconds() >= campaign->until);
}

static void make(struct script *script, uint64_t seed, char name[100]) {
  snprintf(name, 100, "seed %llu", (unsigned long long)seed);
  script_free(script);
  generate(script, seed);
}

/* Runs histories until all are done, or one of them crashes. */
static void run_apart(struct script *script, const struct campaign *campaign) {
  char name[100];
  load();
  for (; !is_over(campaign); progress->done++) {
    make(script, campaign->first + (uint64_t)progress->done, name);
    progress->failures += one(script, name, 0, 0);
  }
  helpers_end();
  fflush(stdout);
  _exit(0);
}

static void run_campaign(struct script *script, const struct campaign *campaign) {
  while (!is_over(campaign)) {
    char name[100];
    int status;
    pid_t child;
    progress->side = -1;
    fflush(stdout);
    child = fork();
    if (child == 0) run_apart(script, campaign);
    if (child < 0 || waitpid(child, &status, 0) != child || progress->load_failed) exit(2);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
    make(script, campaign->first + (uint64_t)progress->done++, name);
    if (progress->side == PLAIN && plain_crashes(script)) {
      progress->plain_crashed++;
    } else {
      progress->failures++;
      printf("SQLite %s: %s: ended with status %d on side %d\n", sqlite3_libversion(), name, status,
        progress->side);
    }
  }
}

int main(int count, char **arguments) {
  static struct script script;
  struct campaign campaign = {1, 0, 0, 10};
  uint64_t seed = 0;
  int shrinking = 0, trace = 0, replay = 0, print = 0;
  double limit = 0, begun;
  if (count < 3) return 2;
  library = arguments[1];
  progress = mmap(0, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (progress == MAP_FAILED) return 2;
  if (!strcmp(arguments[2], "--watcher")) return watcher_main();
  if (!strcmp(arguments[2], "--stranger")) return stranger_main(library, 0);
  if (!strcmp(arguments[2], "--loaded")) return stranger_main(library, 1);
  signal(SIGPIPE, SIG_IGN);
  for (int i = 2; i < count; i++) {
    const char *option = arguments[i], *value = i + 1 < count ? arguments[i + 1] : "";
    if (!strcmp(option, "--shrink")) shrinking = 1;
    else if (!strcmp(option, "--trace")) trace = 1;
    else if (!strcmp(option, "--verbose")) verbose = 1;
    else if (!strcmp(option, "--print")) print = 1;
    else if (!strcmp(option, "--replay")) { replay = i + 1; break; }
    else if (!strcmp(option, "--histories")) campaign.histories = atol(value), i++;
    else if (!strcmp(option, "--first")) campaign.first = strtoull(value, 0, 10), i++;
    else if (!strcmp(option, "--seed")) seed = strtoull(value, 0, 10), i++;
    else if (!strcmp(option, "--seconds")) limit = atof(value), i++;
    else if (!strcmp(option, "--failures")) campaign.failures = atoi(value), i++;
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
  if (!shrinking && (replay || seed)) load();
  begun = seconds();
  if (replay) {
    for (int i = replay; i < count; i++) {
      if (!strcmp(arguments[i], "--shrink") || !strcmp(arguments[i], "--trace")) continue;
      if (!script_read(&script, arguments[i])) {
        fprintf(stderr, "%s: %s\n", arguments[i], strerror(errno));
        return 2;
      }
      progress->failures += one(&script, arguments[i], shrinking, trace);
      progress->done++;
    }
  } else if (seed) {
    char name[100];
    make(&script, seed, name);
    if (print) print_script(&script);
    progress->failures += one(&script, name, shrinking, trace);
    progress->done = 1;
  } else {
    if (limit > 0) campaign.until = begun + limit;
    if (limit > 0 && !campaign.histories) campaign.histories = LONG_MAX;
    run_campaign(&script, &campaign);
  }
  helpers_end();
  printf("SQLite %s: %ld histories, %d failed, %d excused by plain SQLite, plain lost %d, crashed %d, "
    "%.0f a second\n", sqlite3_libversion(), progress->done, progress->failures, progress->excused,
    progress->lost, progress->plain_crashed, (double)progress->done / (seconds() - begun + 1e-9));
  world_remove();
  rmdir(base_dir);
  return progress->failures > 0;
}
