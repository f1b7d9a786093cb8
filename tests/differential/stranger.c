/* Other processes: strangers, which open the encrypted database without its VFS, and the
** watcher, which reads and copies files.
**
** POSIX drops all locks of a process on a file when the process closes any descriptor of it. So
** strangers and the watcher are processes of their own: this program, started again with another
** option. Each answers a line on its input by a line on its output. A stranger's process serves
** later histories until it is killed. */
#define _GNU_SOURCE /* pipe2 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "differential.h"

extern char **environ;

/* ---- the other process: a stranger ---- */

/* The statements of a stranger. One that starts with a question mark may succeed; every other
** one must fail with SQLITE_NOTADB, SQLITE_BUSY or, in a connection that may only read,
** SQLITE_READONLY. */
static const struct action {
  const char *name;
  const char *lines[8];
} actions[] = {
  {"look", {"SELECT count(*) FROM sqlite_master", "PRAGMA schema_version"}},
  {"attach", {"ATTACH %Q AS again", "?SELECT * FROM again.sqlite_master", "?DETACH again"}},
  {"dump", {"?BEGIN", "?PRAGMA writable_schema=ON", "SELECT name,sql FROM sqlite_master ORDER BY 1",
    "?ROLLBACK", "?PRAGMA writable_schema=OFF"}},
  {"recover", {"?PRAGMA page_count", "?PRAGMA freelist_count", "PRAGMA integrity_check",
    "?PRAGMA encoding", "PRAGMA table_info(t0)", "PRAGMA user_version", "=backup"}},
  {"vacuum", {"VACUUM INTO %Q", "VACUUM"}},
  {"write", {"BEGIN IMMEDIATE", "CREATE TABLE z(a)", "INSERT INTO t0 DEFAULT VALUES", "?COMMIT",
    "?ROLLBACK"}},
  {"set", {"PRAGMA user_version=7", "?PRAGMA page_size=512", "?PRAGMA auto_vacuum=1",
    "?PRAGMA journal_size_limit=0", "PRAGMA incremental_vacuum"}},
  {"exclusive", {"?PRAGMA locking_mode=EXCLUSIVE", "SELECT * FROM sqlite_master", "BEGIN EXCLUSIVE",
    "?ROLLBACK", "?PRAGMA locking_mode=NORMAL", "SELECT * FROM sqlite_master"}},
  {"mapped", {"?PRAGMA mmap_size=16777216", "SELECT * FROM sqlite_master", "?PRAGMA mmap_size=0"}},
  {"wal", {"PRAGMA journal_mode=WAL", "SELECT * FROM sqlite_master"}},
  {"delete", {"PRAGMA journal_mode=PERSIST", "PRAGMA journal_mode=DELETE"}},
  {"truncate", {"PRAGMA journal_mode=TRUNCATE", "PRAGMA journal_mode=DELETE"}},
  {"memory", {"PRAGMA journal_mode=MEMORY", "PRAGMA journal_mode=DELETE"}},
  {"off", {"PRAGMA journal_mode=OFF", "SELECT * FROM sqlite_master", "PRAGMA journal_mode=DELETE"}},
  {"passive", {"=0"}}, {"full", {"=1"}}, {"restart", {"=2"}}, {"wipe", {"=3"}},
};
enum { ACTIONS = sizeof actions / sizeof *actions };

const char *stranger_action(int index) { return actions[index % ACTIONS].name; }

static int refused(int code) {
  return (code & 0xff) == SQLITE_NOTADB || (code & 0xff) == SQLITE_BUSY || (code & 0xff) == SQLITE_READONLY;
}

static int copy_into_memory(sqlite3 *db) {
  sqlite3 *into = 0;
  sqlite3_backup *backup;
  int code = sqlite3_open_v2(":memory:", &into, SQLITE_OPEN_READWRITE, 0);
  if (code == SQLITE_OK) {
    backup = sqlite3_backup_init(into, "main", db, "main");
    if (backup) code = sqlite3_backup_step(backup, -1);
    sqlite3_backup_finish(backup);
  }
  sqlite3_close(into);
  return code;
}

static int one_line(sqlite3 *db, const char *line, const char *path, const char *out) {
  char *sql;
  int code, log, moved;
  if (!strcmp(line, "=backup")) return copy_into_memory(db);
  if (line[0] == '=') return sqlite3_wal_checkpoint_v2(db, "main", line[1] - '0', &log, &moved);
  sql = sqlite3_mprintf(line + (line[0] == '?'), strstr(line, "INTO") ? out : path);
  code = sqlite3_exec(db, sql, 0, 0, 0);
  sqlite3_free(sql);
  return code;
}

static void act(sqlite3 *db, const char *name, const char *path, const char *out) {
  for (int i = 0; i < ACTIONS; i++) {
    if (strcmp(actions[i].name, name)) continue;
    for (int k = 0; k < 8 && actions[i].lines[k]; k++) {
      const char *line = actions[i].lines[k];
      int code = one_line(db, line, path, out);
      /* A checkpoint does not look at a file of which it knows no log. */
      int may_work = line[0] == '?' || (line[0] == '=' && line[1] != 'b');
      if (refused(code) || (may_work && (code & 0xff) == SQLITE_OK)) continue;
      if (may_work && line[0] == '?' && (code & 0xff) == SQLITE_ERROR) continue;
      printf("%s: code %d: %s\n", line, code, sqlite3_errmsg(db));
      return;
    }
  }
  printf("ok\n");
}

/* A program with SQLite, where `loaded` with the library: but its connections use the VFS
** `unix`. */
int stranger_main(const char *library, int loaded) {
  static char line[1000], path[500], out[500];
  sqlite3 *db = 0;
  if (loaded) load_library(library);
  while (fgets(line, sizeof line, stdin)) {
    char *rest = strchr(line, ' ');
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, "rw ", 3) || !strncmp(line, "ro ", 3)) {
      int flags = line[1] == 'w' ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY;
      sqlite3_close(db);
      snprintf(path, sizeof path, "%s", rest + 1);
      snprintf(out, sizeof out, "%s", path);
      snprintf(strrchr(out, '/'), 20, "/../out.db");
      if (sqlite3_open_v2(path, &db, flags, 0) != SQLITE_OK) printf("opening: %s\n", sqlite3_errmsg(db));
      else act(db, "look", path, out);
    } else if (!strcmp(line, "close")) {
      sqlite3_close(db);
      db = 0;
      printf("ok\n");
    } else {
      act(db, line, path, out);
    }
    fflush(stdout);
  }
  sqlite3_close(db);
  return 0;
}

/* ---- the other process: the watcher ---- */

static int by_text(const void *a, const void *b) { return strcmp(a, b); }

static uint64_t digest_of(const char *path) {
  static char buffer[1 << 16];
  int in = open(path, O_RDONLY);
  ssize_t count;
  uint64_t hash = 1;
  while (in >= 0 && (count = read(in, buffer, sizeof buffer)) > 0) {
    hash = hash_bytes(hash, buffer, (size_t)count);
  }
  close(in);
  return hash;
}

/* Name, file number, size and digest of each file in `dir`, in one line. */
static void print_digests(const char *dir) {
  static char lines[30][300];
  char path[700];
  int count = 0;
  DIR *open = opendir(dir);
  struct dirent *entry;
  struct stat status;
  while (open && (entry = readdir(open)) && count < 30) {
    if (entry->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
    if (stat(path, &status)) continue;
    snprintf(lines[count++], 300, "%s:%llu:%lld:%llx", entry->d_name, (unsigned long long)status.st_ino,
      (long long)status.st_size, (unsigned long long)digest_of(path));
  }
  if (open) closedir(open);
  qsort(lines, (size_t)count, sizeof *lines, by_text);
  for (int i = 0; i < count; i++) printf("%s ", lines[i]);
  printf("\n");
}

int watcher_main(void) {
  char line[1000], from[400], into[400];
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "copy %399s %399s", from, into) == 2) {
      copy_files(from, into);
      printf("ok\n");
    } else if (sscanf(line, "digest %399s", from) == 1) {
      print_digests(from);
    }
    fflush(stdout);
  }
  return 0;
}

/* ---- this process ---- */

struct helper {
  pid_t pid;
  FILE *to, *from;
};
static struct helper watcher;
static struct { struct helper helper; char file[400]; } strangers[STRANGERS];

static void start(struct helper *helper, const char *what) {
  int in[2], out[2];
  char *arguments[] = {"differential", (char *)library, (char *)what, 0};
  posix_spawn_file_actions_t files;
  if (helper->pid) return;
  if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) exit(2);
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, in[0], 0);
  posix_spawn_file_actions_adddup2(&files, out[1], 1);
  if (posix_spawn(&helper->pid, "/proc/self/exe", &files, 0, arguments, environ)) exit(2);
  posix_spawn_file_actions_destroy(&files);
  close(in[0]);
  close(out[1]);
  helper->to = fdopen(in[1], "w");
  helper->from = fdopen(out[0], "r");
}

static void end(struct helper *helper) {
  if (!helper->pid) return;
  fclose(helper->to);
  fclose(helper->from);
  waitpid(helper->pid, 0, 0);
  memset(helper, 0, sizeof *helper);
}

static void ask(struct helper *helper, const char *line, char answer[2000]) {
  fprintf(helper->to, "%s\n", line);
  fflush(helper->to);
  if (!fgets(answer, 2000, helper->from)) snprintf(answer, 2000, "it died");
  answer[strcspn(answer, "\n")] = 0;
}

static void digests(char into[2000]) {
  char line[400];
  start(&watcher, "--watcher");
  snprintf(line, sizeof line, "digest %s", disks[TDE].dir);
  ask(&watcher, line, into);
}

void copy_apart(const char *from, const char *into) {
  char line[1000], answer[2000];
  start(&watcher, "--watcher");
  snprintf(line, sizeof line, "copy %s %s", from, into);
  ask(&watcher, line, answer);
}

/* A file without a byte is an empty database for everybody. */
static int has_bytes(const char *path) {
  struct stat status;
  return stat(path, &status) == 0 && status.st_size > 0;
}

static void kill_in_its_midst(int number, const char *action) {
  struct helper *helper = &strangers[number].helper;
  if (action[0]) {
    fprintf(helper->to, "%s\n", action);
    fflush(helper->to);
    usleep((useconds_t)(hash_bytes(1, action, strlen(action)) % 300));
  }
  kill(helper->pid, SIGKILL);
  end(helper);
}

int stranger_step(int number, const char *what, char why[500]) {
  static char before[2000], after[2000];
  char line[400], answer[2000] = "ok", *file = strangers[number].file;
  struct helper *helper = &strangers[number].helper;
  int comes = !strncmp(what, "rw ", 3) || !strncmp(what, "ro ", 3);
  int leaves = !strcmp(what, "close") || !strcmp(what, "kill");
  if (comes) {
    snprintf(line, sizeof line, "%s/%s", disks[TDE].dir, what + 3);
    if (file[0] || !has_bytes(line)) return 1;
    memcpy(file, line, sizeof line);
    snprintf(line, sizeof line, "%.2s %.390s", what, file);
    start(helper, number ? "--loaded" : "--stranger");
  } else {
    if (!file[0] || (!leaves && !has_bytes(file))) return 1;
    snprintf(line, sizeof line, "%s", what);
  }
  digests(before);
  if (!strncmp(what, "kill", 4)) kill_in_its_midst(number, what + 4 + (what[4] == ' '));
  else ask(helper, line, answer);
  if (leaves || !strncmp(what, "kill", 4)) file[0] = 0;
  digests(after);
  if (strcmp(answer, "ok")) {
    snprintf(why, 500, "a stranger is not refused: %.300s", answer);
  } else if (strcmp(before, after)) {
    snprintf(why, 500, "a stranger changed the files from %.200s to %.200s", before, after);
  } else {
    return 1;
  }
  return 0;
}

void strangers_leave(void) {
  char answer[2000];
  for (int i = 0; i < STRANGERS; i++) {
    if (!strangers[i].file[0]) continue;
    ask(&strangers[i].helper, "close", answer);
    strangers[i].file[0] = 0;
  }
}

void helpers_end(void) {
  for (int i = 0; i < STRANGERS; i++) end(&strangers[i].helper);
  end(&watcher);
}
