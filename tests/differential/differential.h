/* Differential fuzzer: one history of SQL and file operations is run on plain SQLite and on the VFS
** `tde` in one process, both over a shim VFS that can refuse growth and inject errors.
**
** | file           | content                                                              |
** |----------------|----------------------------------------------------------------------|
** | differential.c | command line, campaign, shrinking                                    |
** | generate.c     | random histories from a seed                                         |
** | history.c      | runs a history step by step and judges it                            |
** | world.c        | the two sides: files, connections, digests, images of the files      |
** | shim.c         | the VFS under both: growth limits, injected errors, images in between |
** | stranger.c     | other processes: programs that cannot read the encrypted database      |
**
** A history is a text of one step a line. What a step means is in history.c. */
#ifndef DIFFERENTIAL_H
#define DIFFERENTIAL_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sqlite3.h"

enum { PLAIN, TDE, SIDES };
enum { CONNECTIONS = 2, MAX_STEPS = 600, MAX_IMAGES = 12 };

/* shim.c */

enum limit { NO_LIMIT, LIMIT_MAIN, LIMIT_LOG, LIMIT_EACH, LIMIT_DISK };
enum operation { OP_NONE, OP_READ, OP_WRITE, OP_SYNC, OP_TRUNCATE, OP_DELETE };

/* The disk of one side. */
struct disk {
  char dir[200];          /* holds the files of this side and no others */
  enum limit limit;
  int64_t room;           /* LIMIT_DISK: bytes by which the files may still grow */
  int64_t allowed[3];     /* largest size in bytes of: a database, a journal or log, another file */
  enum operation fault;   /* the operation that will fail once */
  int fault_in;           /* after how many of them, 1 = the next */
  int fired;              /* failures so far, of limits and of the fault */
  int paused;             /* the fault does not count while the judge reads */
  int image_in;           /* `on_image` is called before this many more changes */
  int stopped;            /* no more is written: the image was taken */
};
extern struct disk disks[SIDES];
extern int current_side;                 /* which side works, and opens temporary files */
extern void (*on_image)(int side);
void shim_register(void);
/* Sizes of the files count from here on. `pages` more pages of `page_size` bytes may be written. */
void disk_limit(struct disk *disk, enum limit limit, int64_t pages, int page_size);

/* world.c */

/* The content of a database: a digest of each schema, main and aux. */
struct content {
  int code;               /* SQLite's code where it cannot be read */
  int has_aux;
  uint64_t schema[2];
  char problem[160];      /* the first line of integrity_check where it is not ok, or an error */
};

extern char tde_uri[200];                /* parameters of the encrypted side */
extern char both_uri[200];               /* parameters of both sides */

void world_setup(const char *base);
void world_empty(int side);              /* removes the files of a side */
void world_remove(void);                 /* removes everything, at the end */
int world_open(int side, sqlite3 **db);
int world_attach(int side, sqlite3 *db);
int world_open_backup(int side, sqlite3 **db);
void world_functions(sqlite3 *db);
struct content read_content(sqlite3 *db, int with_integrity);
/* What a new connection reads, with the second database attached where its file exists. */
struct content fresh_content(int side, int with_integrity);
int same_content(const struct content *a, const struct content *b);
void image_take(int side, int number);
void image_put_back(int side, int number);
uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t count);
void copy_files(const char *from, const char *into); /* all of a directory but the wal-index */
int every_page(int side);                /* copies the whole database into memory */

/* stranger.c */

enum { STRANGERS = 2 };                  /* 0: without the library, 1: with it, but not its VFS */
int stranger_main(const char *library, int loaded);
int watcher_main(void);
const char *stranger_action(int index);
/* What stranger `number` does to the encrypted side, and whether it was refused and changed
** nothing. */
int stranger_step(int number, const char *what, char why[500]);
void strangers_leave(void);
void copy_apart(const char *from, const char *into); /* copy_files, in another process */
void helpers_end(void);

/* differential.c */

extern const char *library;
void load_library(const char *path);

/* history.c */

struct script {
  int count;
  char *lines[MAX_STEPS];
};
struct verdict {
  int failed;             /* the encrypted side did what plain SQLite does not */
  int plain_lost;         /* plain SQLite failed a check itself */
  int step;
  char why[600];
};
/* `only_plain` judges plain SQLite alone, with each limit and fault replaced by `other` if >= 0. */
struct verdict run_history(const struct script *script, int only_plain, int other, int trace);
void script_add(struct script *script, const char *format, ...);
void script_free(struct script *script);
int script_read(struct script *script, const char *path);

/* generate.c */

void generate(struct script *script, uint64_t seed);

#endif
