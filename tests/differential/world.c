/* The two sides: their files, how a connection is opened, what a database contains. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "differential.h"

char tde_uri[200], both_uri[200];

static const char *const side_names[SIDES] = {"p", "t"};
/* The library's code for an ATTACH that creates, on a host that cannot. */
enum { CREATES_NOT = SQLITE_CANTOPEN | 117 << 8 };

static char base_dir[150], out_file[200]; /* where a stranger's VACUUM goes */

static void path_of(int side, int image, char into[300]) {
  if (image < 0) {
    snprintf(into, 300, "%s", disks[side].dir);
  } else {
    snprintf(into, 300, "%s/%s%d", base_dir, side_names[side], image);
  }
}

static void empty_dir(const char *dir) {
  DIR *open = opendir(dir);
  struct dirent *entry;
  while (open && (entry = readdir(open))) {
    if (entry->d_name[0] != '.') unlinkat(dirfd(open), entry->d_name, 0);
  }
  if (open) closedir(open);
}

void world_setup(const char *base) {
  snprintf(base_dir, sizeof base_dir, "%s", base);
  snprintf(out_file, sizeof out_file, "%s/out.db", base);
  for (int side = 0; side < SIDES; side++) {
    snprintf(disks[side].dir, sizeof disks[side].dir, "%s/%s", base, side_names[side]);
    mkdir(disks[side].dir, 0700);
    for (int image = 0; image < MAX_IMAGES; image++) {
      char dir[300];
      path_of(side, image, dir);
      mkdir(dir, 0700);
    }
  }
}

void world_empty(int side) { empty_dir(disks[side].dir); }

void world_remove(void) {
  for (int side = 0; side < SIDES; side++) {
    for (int image = -1; image < MAX_IMAGES; image++) {
      char dir[300];
      path_of(side, image, dir);
      empty_dir(dir);
      rmdir(dir);
    }
  }
  unlinkat(AT_FDCWD, out_file, 0);
}

/* fill(seed, count): a blob that depends on both. */
static void fill(sqlite3_context *context, int count, sqlite3_value **values) {
  uint64_t state = (uint64_t)sqlite3_value_int64(values[0]) * 0x9e3779b97f4a7c15u + 1;
  sqlite3_int64 size = sqlite3_value_int64(values[1]);
  unsigned char *bytes;
  (void)count;
  if (size < 0) size = 0;
  if (size > 1 << 20) size = 1 << 20;
  bytes = sqlite3_malloc64((sqlite3_uint64)size + 8);
  if (!bytes) {
    sqlite3_result_error_nomem(context);
    return;
  }
  for (sqlite3_int64 i = 0; i < size; i += 8) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    memcpy(bytes + i, &state, 8);
  }
  sqlite3_result_blob64(context, bytes, (sqlite3_uint64)size, sqlite3_free);
}

void world_functions(sqlite3 *db) {
  sqlite3_create_function(db, "fill", 2, SQLITE_UTF8 | SQLITE_DETERMINISTIC, 0, fill, 0, 0);
}

static void uri(int side, const char *name, char into[900]) {
  snprintf(into, 900, "file:%s/%s?vfs=%s%s%s%s%s", disks[side].dir, name,
    side == TDE ? "tde" : "shim", both_uri[0] ? "&" : "", both_uri,
    side == TDE && tde_uri[0] ? "&" : "", side == TDE ? tde_uri : "");
}

/* Plain pages get as many reserve bytes as encrypted ones, so that both have the same layout. */
static void reserve(int side, sqlite3 *db, const char *schema) {
  int bytes = 48;
  if (side == PLAIN) sqlite3_file_control(db, schema, SQLITE_FCNTL_RESERVE_BYTES, &bytes);
}

static int open_named(int side, const char *name, sqlite3 **db) {
  char text[900];
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, code;
  current_side = side;
  uri(side, name, text);
  code = sqlite3_open_v2(text, db, flags, 0);
  if (code != SQLITE_OK) return code;
  sqlite3_extended_result_codes(*db, 1);
  reserve(side, *db, "main");
  world_functions(*db);
  return SQLITE_OK;
}

int world_open(int side, sqlite3 **db) { return open_named(side, "a.db", db); }
int world_open_backup(int side, sqlite3 **db) { return open_named(side, "c.db", db); }

static int is_empty(int side, const char *name) {
  char path[300];
  struct stat status;
  snprintf(path, sizeof path, "%s/%s", disks[side].dir, name);
  return stat(path, &status) != 0 || status.st_size == 0;
}

/* Before 3.39 ATTACH cannot create an encrypted database: there it is made on both sides first. */
static void make_second(int side) {
  sqlite3 *db = 0;
  if (sqlite3_libversion_number() >= 3039000 || !is_empty(side, "b.db")) return;
  if (open_named(side, "b.db", &db) == SQLITE_OK) {
    sqlite3_exec(db, "PRAGMA user_version=1", 0, 0, 0);
  }
  sqlite3_close(db);
}

int world_attach(int side, sqlite3 *db) {
  char text[900], *sql;
  int code;
  make_second(side);
  uri(side, "b.db", text);
  sql = sqlite3_mprintf("ATTACH %Q AS aux", text);
  code = sqlite3_exec(db, sql, 0, 0, 0);
  sqlite3_free(sql);
  if (code == SQLITE_OK) reserve(side, db, "aux");
  return code;
}

uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t count) {
  const unsigned char *at = bytes;
  for (; count >= 8; at += 8, count -= 8) {
    uint64_t word;
    memcpy(&word, at, 8);
    hash = (hash ^ word) * 0x9fb21c651e98df25u;
    hash ^= hash >> 29;
  }
  for (; count; at++, count--) hash = (hash ^ *at) * 0x100000001b3u;
  return hash ^ hash >> 32;
}

static uint64_t hash_row(uint64_t hash, sqlite3_stmt *row) {
  int columns = sqlite3_column_count(row);
  for (int i = 0; i < columns; i++) {
    int type = sqlite3_column_type(row, i);
    const void *bytes = type == SQLITE_BLOB ? sqlite3_column_blob(row, i)
      : (const void *)sqlite3_column_text(row, i);
    int size = sqlite3_column_bytes(row, i);
    hash = hash_bytes(hash * 31 + (uint64_t)type, &size, sizeof size);
    if (bytes) hash = hash_bytes(hash, bytes, (size_t)size);
  }
  return hash;
}

static int hash_query(sqlite3 *db, char *sql, uint64_t *hash) {
  sqlite3_stmt *row;
  int code = sqlite3_prepare_v2(db, sql, -1, &row, 0);
  sqlite3_free(sql);
  if (code != SQLITE_OK) return code;
  while ((code = sqlite3_step(row)) == SQLITE_ROW) *hash = hash_row(*hash, row);
  sqlite3_finalize(row);
  return code == SQLITE_DONE ? SQLITE_OK : code;
}

static int hash_schema(sqlite3 *db, const char *schema, uint64_t *hash) {
  sqlite3_stmt *table;
  char *sql = sqlite3_mprintf("SELECT type, name, sql FROM %s.sqlite_master ORDER BY name", schema);
  int code = sqlite3_prepare_v2(db, sql, -1, &table, 0), last;
  sqlite3_free(sql);
  *hash = 1;
  if (code != SQLITE_OK) return code;
  while ((code = sqlite3_step(table)) == SQLITE_ROW) {
    *hash = hash_row(*hash, table);
    if (strcmp((const char *)sqlite3_column_text(table, 0), "table") == 0) {
      char *rows = sqlite3_mprintf("SELECT * FROM %s.\"%w\" ORDER BY 1", schema,
        sqlite3_column_text(table, 1));
      code = hash_query(db, rows, hash);
      if (code != SQLITE_OK) break;
    }
  }
  last = sqlite3_finalize(table);
  return code != SQLITE_DONE && code != SQLITE_ROW ? code : last;
}

static int integrity(sqlite3 *db, const char *schema, char problem[160]) {
  sqlite3_stmt *row;
  char *sql = sqlite3_mprintf("PRAGMA %s.integrity_check(1)", schema);
  int code = sqlite3_prepare_v2(db, sql, -1, &row, 0);
  sqlite3_free(sql);
  if (code != SQLITE_OK) return code;
  while ((code = sqlite3_step(row)) == SQLITE_ROW) {
    const char *said = (const char *)sqlite3_column_text(row, 0);
    if (said && strcmp(said, "ok") != 0 && !problem[0]) snprintf(problem, 160, "%s: %s", schema, said);
  }
  sqlite3_finalize(row);
  return code == SQLITE_DONE ? SQLITE_OK : code;
}

struct content read_content(sqlite3 *db, int with_integrity) {
  struct content content = {0};
  content.has_aux = sqlite3_db_filename(db, "aux") != 0;
  content.schema[1] = 1;
  for (int i = 0; i <= content.has_aux && content.code == SQLITE_OK; i++) {
    const char *schema = i ? "aux" : "main";
    content.code = hash_schema(db, schema, &content.schema[i]);
    if (content.code == SQLITE_OK && with_integrity) {
      content.code = integrity(db, schema, content.problem);
    }
  }
  if (content.code != SQLITE_OK) {
    snprintf(content.problem, sizeof content.problem, "%s", sqlite3_errmsg(db));
  }
  return content;
}

struct content fresh_content(int side, int with_integrity) {
  struct content content = {0};
  sqlite3 *db = 0;
  content.code = world_open(side, &db);
  if (content.code == SQLITE_OK && !is_empty(side, "b.db")) content.code = world_attach(side, db);
  /* The creation of the second one failed: there is nothing in it. */
  if (content.code == CREATES_NOT) content.code = SQLITE_OK;
  if (content.code == SQLITE_OK) {
    content = read_content(db, with_integrity);
  } else {
    snprintf(content.problem, sizeof content.problem, "opening: %s", sqlite3_errmsg(db));
  }
  content.has_aux = 1;
  sqlite3_close(db);
  return content;
}

int same_content(const struct content *a, const struct content *b) {
  return a->code == b->code && a->schema[0] == b->schema[0]
    && (!a->has_aux || !b->has_aux || a->schema[1] == b->schema[1]);
}

int every_page(int side) {
  sqlite3 *from = 0, *into = 0;
  int code = world_open(side, &from);
  if (code == SQLITE_OK) code = sqlite3_open_v2(":memory:", &into, SQLITE_OPEN_READWRITE, "unix");
  if (code == SQLITE_OK) {
    sqlite3_backup *backup = sqlite3_backup_init(into, "main", from, "main");
    if (backup) {
      sqlite3_backup_step(backup, -1);
      code = sqlite3_backup_finish(backup);
    } else {
      code = sqlite3_errcode(into);
    }
  }
  sqlite3_close(from);
  sqlite3_close(into);
  return code;
}

static void copy_file(const char *from, const char *into) {
  static char buffer[1 << 16];
  int in = open(from, O_RDONLY), out = open(into, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ssize_t count;
  while (in >= 0 && out >= 0 && (count = read(in, buffer, sizeof buffer)) > 0) {
    if (write(out, buffer, (size_t)count) != count) break;
  }
  close(in);
  close(out);
}

void copy_files(const char *dir, const char *target) {
  char from[900], into[900];
  struct dirent *entry;
  DIR *open = opendir(dir);
  while (open && (entry = readdir(open))) {
    size_t length = strlen(entry->d_name);
    if (entry->d_name[0] == '.' || (length > 4 && !strcmp(entry->d_name + length - 4, "-shm"))) continue;
    snprintf(from, sizeof from, "%s/%s", dir, entry->d_name);
    snprintf(into, sizeof into, "%s/%s", target, entry->d_name);
    copy_file(from, into);
  }
  if (open) closedir(open);
}

/* Copies what a killed process leaves on the disk. The wal-index dies with it. Another process
** does it: in this one, closing a file gives back the locks of its connections. */
void image_take(int side, int number) {
  char dir[300];
  path_of(side, number, dir);
  empty_dir(dir);
  copy_apart(disks[side].dir, dir);
}

/* The image under the names that its files had: a super-journal holds full names. */
void image_put_back(int side, int number) {
  char dir[300], from[600], into[600];
  DIR *open;
  struct dirent *entry;
  world_empty(side);
  path_of(side, number, dir);
  open = opendir(dir);
  while (open && (entry = readdir(open))) {
    if (entry->d_name[0] == '.') continue;
    snprintf(from, sizeof from, "%s/%s", dir, entry->d_name);
    snprintf(into, sizeof into, "%s/%s", disks[side].dir, entry->d_name);
    rename(from, into);
  }
  if (open) closedir(open);
}
