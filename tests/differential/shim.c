/* A VFS over `unix` that can be told to refuse growth, to fail once, and to stop for an image.
**
** A write beyond a limit writes what fits and answers SQLITE_FULL, as a full disk, a quota or
** RLIMIT_FSIZE make the unix VFS do. Everything else passes through. */
#include <sys/stat.h>
#include "differential.h"

struct disk disks[SIDES];
int current_side;
void (*on_image)(int side);

static sqlite3_vfs *base;

enum kind { KIND_MAIN, KIND_LOG, KIND_OTHER };
struct file {
  sqlite3_file self;
  struct disk *disk;
  enum kind kind;
  sqlite3_file *real;     /* behind this structure */
};

static int side_of(const struct disk *disk) { return (int)(disk - disks); }

static int64_t size_of(struct file *file) {
  sqlite3_int64 size = 0;
  return file->real->pMethods->xFileSize(file->real, &size) == SQLITE_OK ? size : 0;
}

/* Counts one operation. The answer is whether it must fail. */
static int fails(struct disk *disk, enum operation operation) {
  if (operation != OP_READ && !disk->paused && disk->image_in > 0 && --disk->image_in == 0) {
    on_image(side_of(disk));
  }
  if (disk->paused || disk->fault != operation || --disk->fault_in > 0) return 0;
  disk->fault = OP_NONE;
  disk->fired++;
  return 1;
}

/* The size up to which `file`, which is `size` bytes, may grow. */
static int64_t allowed(struct file *file, int64_t size) {
  struct disk *disk = file->disk;
  int64_t most;
  if (disk->limit == NO_LIMIT) return INT64_MAX;
  if (disk->limit == LIMIT_DISK) return size + disk->room;
  most = disk->allowed[file->kind];
  return most > size ? most : size;
}

static void grew(struct disk *disk, int64_t bytes) {
  if (disk->limit == LIMIT_DISK) disk->room -= bytes;
}

void disk_limit(struct disk *disk, enum limit limit, int64_t pages, int page_size) {
  static const char *names[] = {"a.db", "b.db", "a.db-wal", "b.db-wal", "a.db-tdewal",
    "b.db-tdewal", "a.db-journal", "b.db-journal"};
  int64_t largest[2] = {0, 0}, more = pages * page_size;
  disk->limit = limit;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char path[300];
    struct stat status;
    int64_t *most = &largest[i >= 2];
    snprintf(path, sizeof path, "%s/%s", disk->dir, names[i]);
    if (stat(path, &status) == 0 && status.st_size > *most) *most = status.st_size;
  }
  disk->room = more;
  for (int kind = KIND_MAIN; kind <= KIND_OTHER; kind++) disk->allowed[kind] = INT64_MAX;
  if (limit == LIMIT_MAIN) disk->allowed[KIND_MAIN] = largest[0] + more;
  if (limit == LIMIT_LOG) disk->allowed[KIND_LOG] = largest[1] + more;
  if (limit == LIMIT_EACH) {
    for (int kind = KIND_MAIN; kind <= KIND_OTHER; kind++) disk->allowed[kind] = largest[0] + more;
  }
}

#define SHIM(p) ((struct file *)(p))
#define REAL(p) (SHIM(p)->real)
#define CALL(p, method, ...) (REAL(p)->pMethods->method(REAL(p), ##__VA_ARGS__))

static int shim_close(sqlite3_file *p) {
  struct file *file = SHIM(p);
  if (file->kind == KIND_OTHER) grew(file->disk, -size_of(file));
  return CALL(p, xClose);
}

static int shim_read(sqlite3_file *p, void *into, int count, sqlite3_int64 at) {
  if (fails(SHIM(p)->disk, OP_READ)) return SQLITE_IOERR_READ;
  return CALL(p, xRead, into, count, at);
}

static int shim_write(sqlite3_file *p, const void *from, int count, sqlite3_int64 at) {
  struct file *file = SHIM(p);
  struct disk *disk = file->disk;
  if (fails(disk, OP_WRITE)) return SQLITE_IOERR_WRITE;
  if (disk->limit != NO_LIMIT) {
    int64_t size = size_of(file), end = at + count, most = allowed(file, size);
    if (end > size && end > most) {
      disk->fired++;
      if (at < most) {
        CALL(p, xWrite, from, (int)(most - at), at);
        if (most > size) grew(disk, most - size);
      }
      return SQLITE_FULL;
    }
    if (end > size) grew(disk, end - size);
  }
  return CALL(p, xWrite, from, count, at);
}

static int shim_truncate(sqlite3_file *p, sqlite3_int64 size) {
  struct file *file = SHIM(p);
  int64_t now = size_of(file);
  if (fails(file->disk, OP_TRUNCATE)) return SQLITE_IOERR_TRUNCATE;
  if (size > now && size > allowed(file, now)) {
    file->disk->fired++;
    return SQLITE_FULL;
  }
  grew(file->disk, size - now);
  return CALL(p, xTruncate, size);
}

static int shim_sync(sqlite3_file *p, int flags) {
  if (fails(SHIM(p)->disk, OP_SYNC)) return SQLITE_IOERR_FSYNC;
  return CALL(p, xSync, flags);
}

static int shim_size(sqlite3_file *p, sqlite3_int64 *size) { return CALL(p, xFileSize, size); }
static int shim_lock(sqlite3_file *p, int level) { return CALL(p, xLock, level); }
static int shim_unlock(sqlite3_file *p, int level) { return CALL(p, xUnlock, level); }
static int shim_reserved(sqlite3_file *p, int *is) { return CALL(p, xCheckReservedLock, is); }
static int shim_sector(sqlite3_file *p) { return CALL(p, xSectorSize); }
static int shim_traits(sqlite3_file *p) { return CALL(p, xDeviceCharacteristics); }

static int shim_control(sqlite3_file *p, int op, void *arg) {
  struct file *file = SHIM(p);
  if (op == SQLITE_FCNTL_SIZE_HINT) {
    int64_t now = size_of(file), hint = *(sqlite3_int64 *)arg, after;
    int code;
    if (hint > now && hint > allowed(file, now)) return SQLITE_IOERR_TRUNCATE;
    code = CALL(p, xFileControl, op, arg);
    after = size_of(file);
    grew(file->disk, after - now);
    return code;
  }
  return CALL(p, xFileControl, op, arg);
}

static int shim_map(sqlite3_file *p, int region, int size, int extend, void volatile **at) {
  return CALL(p, xShmMap, region, size, extend, at);
}
static int shim_shm_lock(sqlite3_file *p, int at, int count, int flags) {
  return CALL(p, xShmLock, at, count, flags);
}
static void shim_barrier(sqlite3_file *p) { CALL(p, xShmBarrier); }
static int shim_unmap(sqlite3_file *p, int remove) { return CALL(p, xShmUnmap, remove); }
static int shim_fetch(sqlite3_file *p, sqlite3_int64 at, int count, void **page) {
  return CALL(p, xFetch, at, count, page);
}
static int shim_unfetch(sqlite3_file *p, sqlite3_int64 at, void *page) {
  return CALL(p, xUnfetch, at, page);
}

static const sqlite3_io_methods methods = {
  3, shim_close, shim_read, shim_write, shim_truncate, shim_sync, shim_size, shim_lock,
  shim_unlock, shim_reserved, shim_control, shim_sector, shim_traits, shim_map, shim_shm_lock,
  shim_barrier, shim_unmap, shim_fetch, shim_unfetch};

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *p, int flags, int *out) {
  struct file *file = SHIM(p);
  int code, side = current_side;
  (void)vfs;
  for (int i = 0; name && i < SIDES; i++) {
    if (strncmp(name, disks[i].dir, strlen(disks[i].dir)) == 0) side = i;
  }
  file->disk = &disks[side];
  file->kind = flags & SQLITE_OPEN_MAIN_DB ? KIND_MAIN
    : flags & (SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_WAL) ? KIND_LOG : KIND_OTHER;
  file->real = (sqlite3_file *)(file + 1);
  code = base->xOpen(base, name, file->real, flags, out);
  file->self.pMethods = file->real->pMethods ? &methods : 0;
  return code;
}

static int shim_delete(sqlite3_vfs *vfs, const char *name, int sync) {
  struct disk *disk = &disks[current_side];
  struct stat status;
  (void)vfs;
  if (fails(disk, OP_DELETE)) return SQLITE_IOERR_DELETE;
  if (disk->limit == LIMIT_DISK && stat(name, &status) == 0) grew(disk, -status.st_size);
  return base->xDelete(base, name, sync);
}

static int shim_access(sqlite3_vfs *vfs, const char *name, int flags, int *is) {
  (void)vfs;
  return base->xAccess(base, name, flags, is);
}

void shim_register(void) {
  static sqlite3_vfs shim;
  base = sqlite3_vfs_find("unix");
  shim = *base;
  shim.zName = "shim";
  shim.szOsFile = (int)sizeof(struct file) + base->szOsFile;
  shim.pNext = 0;
  shim.xOpen = shim_open;
  shim.xDelete = shim_delete;
  shim.xAccess = shim_access;
  sqlite3_vfs_register(&shim, 1);
}
