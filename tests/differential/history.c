/* Runs a history on both sides, step by step, and judges it.
**
** | step                     | effect on each side                                               |
** |--------------------------|-------------------------------------------------------------------|
** | tde X, uri X             | URI parameters of the encrypted side, of both (before any open)   |
** | open C, close C          | connection C, 0 or 1, of the database                             |
** | attach C                 | a second database, `aux`                                          |
** | sql C TEXT               | one statement; rows and codes are compared                        |
** | set C TEXT               | a PRAGMA whose answer may differ; mmap_size: encrypted side alone |
** | cursor C TEXT, next C N  | a statement that stays open, N more rows of it                    |
** | end C                    | closes it                                                         |
** | blob C TABLE ID AT N SEED| writes N bytes in the middle of a value, in place                 |
** | cacheflush C, release C  | sqlite3_db_cacheflush, sqlite3_db_release_memory                  |
** | snap C, look C, unsnap C | begins a read transaction, reads it again, ends it                |
** | backup N                 | begins to copy the database, or goes on, N pages; 0 ends it       |
** | limit KIND N, limit off  | no growth beyond N pages: main, log, each, disk                   |
** | fault KIND N, fault off  | the Nth read, write, sync, truncate or delete fails, once         |
** | image                    | the files as a killed process leaves them, read at the end        |
** | imageat N                | the same before the Nth change of a file in the next step         |
** | check                    | the whole content, by this connection and by a new one            |
** | stranger C rw F, ro F    | process C, which has no key, opens file F: see stranger.c         |
** | stranger C WORK          | its work, by a name in stranger.c                                 |
** | stranger C close         | it closes its connection                                          |
** | stranger C kill [WORK]   | it is killed, while it does that work                             |
**
** Until the first limit or fault both sides must agree in everything. From then on each side is
** judged by a model of its own: the statements that succeeded on it are run again on a database
** in memory, its twin. Commits that were reported must be there and transactions that were
** rolled back must be gone. */
#include <ctype.h>
#include <stdarg.h>
#include "differential.h"

struct outcome {
  int code, autocommit, rows, readonly;
  uint64_t hash;
  char first[64];                        /* the first column of the first row */
  char error[200];
};

struct image {
  int taken, step, joint;                /* joint: one transaction over both databases is atomic */
  int count;
  struct content any[3];                 /* one of these must be recovered */
};

enum { PAST = 64 };
struct side {
  sqlite3 *db[CONNECTIONS];
  sqlite3_stmt *cursor[CONNECTIONS];
  sqlite3_backup *backup;
  sqlite3 *backup_db;
  sqlite3 *twin;
  int twin_known;                        /* the twin holds what this side must hold */
  int open_question;                     /* a ROLLBACK TO failed: unknown until the transaction ends */
  struct content committed, maybe;       /* maybe: of a commit that failed with an I/O error */
  int has_maybe, unsure;                 /* unsure: which of the two it is now */
  struct content past[PAST];             /* every committed content */
  int past_count;
  struct content snap[CONNECTIONS];
  int has_snap[CONNECTIONS];
  int mode_loses, mode_off;              /* the journal is in memory, or there is none */
  int sync_off, wal;
  int lossy;                             /* an error met a database without a journal */
  struct image images[MAX_IMAGES];
};

static struct run {
  const struct script *script;
  int only_plain, other, trace;
  int diverged, with_twin, images, armed, has_log, has_strangers;
  int page_size;
  struct verdict verdict;
  struct side sides[SIDES];
} run;

#define EACH_SIDE(s) for (int s = 0; next_side(s); s++)

static int over(void) { return run.verdict.failed || run.verdict.plain_lost; }

static int next_side(int s) {
  if (s >= (run.only_plain ? 1 : SIDES) || over()) return 0;
  current_side = s;
  return 1;
}

/* A check of side `s` that did not hold, alone. */
static void fault_of(int s, const char *format, ...) {
  va_list arguments;
  if (over()) return;
  va_start(arguments, format);
  vsnprintf(run.verdict.why, sizeof run.verdict.why, format, arguments);
  va_end(arguments);
  if (s == PLAIN) run.verdict.plain_lost = 1;
  else run.verdict.failed = 1;
}

static const char *name_of(int s) { return s == PLAIN ? "plain" : "tde"; }

static int is_word(const char *sql, const char *word) {
  size_t length = strlen(word);
  return sqlite3_strnicmp(sql, word, (int)length) == 0 && !isalnum((unsigned char)sql[length]);
}

static int may_come_of_an_error(int code) {
  /* What the library says of a record that is not authentic, or not of this state of the
  ** database. */
  if (code == SQLITE_IOERR_DATA) return 0;
  switch (code & 0xff) {
    case SQLITE_OK: case SQLITE_BUSY: case SQLITE_LOCKED: case SQLITE_FULL: case SQLITE_IOERR:
    case SQLITE_CANTOPEN: case SQLITE_ABORT: case SQLITE_PROTOCOL:
      return 1;
  }
  return 0;
}

/* ---- one statement ---- */

static void take_row(struct outcome *outcome, sqlite3_stmt *statement) {
  for (int i = 0; i < sqlite3_column_count(statement); i++) {
    int type = sqlite3_column_type(statement, i);
    const void *bytes = type == SQLITE_BLOB ? sqlite3_column_blob(statement, i)
      : (const void *)sqlite3_column_text(statement, i);
    int size = sqlite3_column_bytes(statement, i);
    outcome->hash = hash_bytes(outcome->hash * 31 + (uint64_t)type, &size, sizeof size);
    if (bytes) outcome->hash = hash_bytes(outcome->hash, bytes, (size_t)size);
    if (i == 0 && outcome->rows == 0 && bytes) {
      snprintf(outcome->first, sizeof outcome->first, "%.*s", size, (const char *)bytes);
    }
  }
  outcome->rows++;
}

static void conclude(struct outcome *outcome, sqlite3 *db, int code) {
  outcome->code = code == SQLITE_DONE || code == SQLITE_ROW ? SQLITE_OK : code;
  outcome->autocommit = sqlite3_get_autocommit(db);
  outcome->error[0] = 0;
  if (outcome->code != SQLITE_OK) {
    snprintf(outcome->error, sizeof outcome->error, "%s", sqlite3_errmsg(db));
  }
}

static struct outcome run_sql(sqlite3 *db, const char *sql) {
  struct outcome outcome = {0};
  sqlite3_stmt *statement = 0;
  int code = sqlite3_prepare_v2(db, sql, -1, &statement, 0);
  if (code == SQLITE_OK && statement) {
    outcome.readonly = sqlite3_stmt_readonly(statement);
    while ((code = sqlite3_step(statement)) == SQLITE_ROW) take_row(&outcome, statement);
    conclude(&outcome, db, code);
    code = sqlite3_finalize(statement);
    if (outcome.code == SQLITE_OK) conclude(&outcome, db, code);
    outcome.autocommit = sqlite3_get_autocommit(db);
  } else {
    conclude(&outcome, db, code);
  }
  return outcome;
}

/* ---- the model of one side ---- */

/* The journal modes of both databases of connection 0. */
static void note_modes(struct side *side) {
  static const char *const asks[] = {"PRAGMA main.journal_mode", "PRAGMA aux.journal_mode"};
  side->mode_off = side->mode_loses = side->wal = 0;
  for (int i = 0; i < 2; i++) {
    struct outcome mode = run_sql(side->db[0], asks[i]);
    int off = !strcmp(mode.first, "off");
    side->mode_off |= off;
    side->mode_loses |= off || !strcmp(mode.first, "memory");
    side->wal |= !strcmp(mode.first, "wal");
  }
}

static void note_committed(struct side *side) {
  if (!side->twin || !side->twin_known || !sqlite3_get_autocommit(side->twin)) return;
  side->committed = read_content(side->twin, 0);
  if (side->past_count == 0
      || !same_content(&side->past[(side->past_count - 1) % PAST], &side->committed)) {
    side->past[side->past_count++ % PAST] = side->committed;
  }
}

static void note_maybe(struct side *side, const char *sql) {
  int alone = sqlite3_get_autocommit(side->twin);
  if (alone) {
    sqlite3_exec(side->twin, "SAVEPOINT attempt", 0, 0, 0);
    sqlite3_exec(side->twin, sql, 0, 0, 0);
  }
  side->maybe = read_content(side->twin, 0);
  side->has_maybe = 1;
  if (alone) sqlite3_exec(side->twin, "ROLLBACK TO attempt; RELEASE attempt", 0, 0, 0);
}

static int left_to_files(const char *sql) {
  return is_word(sql, "PRAGMA") || is_word(sql, "VACUUM") || is_word(sql, "ATTACH")
    || is_word(sql, "DETACH") || is_word(sql, "REINDEX") || is_word(sql, "SELECT");
}

static void must_be_own(int s);

/* The statement `sql` of connection `c` ended as `outcome`: the twin follows. */
static void follow(int s, int c, const char *sql, const struct outcome *outcome) {
  struct side *side = &run.sides[s];
  int primary = outcome->code & 0xff, ends = is_word(sql, "COMMIT") || is_word(sql, "RELEASE");
  int failed = primary == SQLITE_FULL || primary == SQLITE_IOERR || primary == SQLITE_NOMEM
    || primary == SQLITE_CANTOPEN || primary == SQLITE_ABORT;
  struct outcome model;
  if (side->mode_off && run.diverged && (failed || is_word(sql, "ROLLBACK"))) side->lossy = 1;
  if (side->lossy) return;
  if (primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB || outcome->code == SQLITE_IOERR_DATA) {
    fault_of(s, "%s: code %d: %s", name_of(s), outcome->code, outcome->error);
    return;
  }
  if (failed && !disks[s].fired && run.diverged) {
    fault_of(s, "%s: code %d without a cause: %s", name_of(s), outcome->code, outcome->error);
    return;
  }
  if (side->mode_off && is_word(sql, "ROLLBACK")) side->twin_known = 0;
  if (!side->twin || !side->twin_known) return;
  /* SQLite rolls back where a RELEASE that commits fails, and still says that a transaction is
  ** active: what follows is in one that has nothing of what was before. */
  if (failed && c == 0 && is_word(sql, "RELEASE") && !outcome->autocommit) {
    side->twin_known = 0;
    return;
  }
  if (c != 0) {
    if (outcome->readonly || outcome->code != SQLITE_OK || left_to_files(sql)) return;
    if (is_word(sql, "BEGIN") || !outcome->autocommit || !sqlite3_get_autocommit(side->twin)) {
      side->twin_known = 0;
      return;
    }
  }
  if (outcome->code == SQLITE_OK && side->open_question && ends && outcome->autocommit) {
    side->twin_known = 0;
  }
  if (!side->twin_known) return;
  if (failed && is_word(sql, "ROLLBACK") && !outcome->autocommit) side->open_question = 1;
  if ((primary == SQLITE_OK || primary == SQLITE_CONSTRAINT) && !left_to_files(sql)) {
    model = run_sql(side->twin, sql);
    if ((model.code & 0xff) != primary && side->unsure) {
      side->twin_known = 0;
      return;
    }
    if ((model.code & 0xff) != primary && !side->open_question) {
      fault_of(s, "%s: code %d where its own statements so far lead to %d: %s", name_of(s),
        outcome->code, model.code, model.error);
      return;
    }
  }
  /* After a commit to a log, SQLite reports an error of the checkpoint that follows as the
  ** statement's. */
  if ((primary == SQLITE_IOERR || (side->wal && primary == SQLITE_FULL)) && outcome->autocommit
      && !left_to_files(sql)) {
    note_maybe(side, sql);
    side->unsure = 1;
  }
  if (outcome->autocommit && !sqlite3_get_autocommit(side->twin)) {
    sqlite3_exec(side->twin, "ROLLBACK", 0, 0, 0);
  }
  if (outcome->autocommit) side->open_question = 0;
  if (outcome->code == SQLITE_OK && outcome->autocommit && !outcome->readonly && !left_to_files(sql)
      && !side->unsure) {
    side->has_maybe = 0;
  }
  note_committed(side);
  if (side->unsure) {
    disks[s].paused++;
    must_be_own(s);
    disks[s].paused--;
  }
}

/* An error in any call may have rolled the transaction back. */
static void follow_rollback(int s) {
  struct side *side = &run.sides[s];
  if (!side->twin || !side->db[0] || !sqlite3_get_autocommit(side->db[0])
      || sqlite3_get_autocommit(side->twin)) {
    return;
  }
  sqlite3_exec(side->twin, "ROLLBACK", 0, 0, 0);
  if (side->mode_off) side->lossy = 1;
  side->open_question = 0;
  note_committed(side);
}

/* What the commit that failed would have made; of two logs, one may hold it. */
static int is_maybe(const struct side *side, const struct content *before, const struct content *found) {
  if (!side->has_maybe) return 0;
  if (same_content(found, &side->maybe)) return 1;
  for (int i = 0; i < 2; i++) {
    int either = found->schema[i] == before->schema[i] || found->schema[i] == side->maybe.schema[i];
    if (!either && (i == 0 || found->has_aux)) return 0;
  }
  return side->wal && found->code == SQLITE_OK;
}

/* Whether `found` is what the side's model allows a reader outside of the transaction to find. */
static void must_be_committed(int s, const struct content *found, const char *who, int strict) {
  struct side *side = &run.sides[s];
  if (side->lossy) return;
  if (found->code != SQLITE_OK) {
    if (strict || !may_come_of_an_error(found->code)) {
      fault_of(s, "%s: %s: code %d: %s", name_of(s), who, found->code, found->problem);
    }
    return;
  }
  if (found->problem[0]) fault_of(s, "%s: %s: %s", name_of(s), who, found->problem);
  if (!side->twin || !side->twin_known) return;
  if (same_content(found, &side->committed)) return;
  if (is_maybe(side, &side->committed, found)) {
    side->twin_known = 0;
    return;
  }
  fault_of(s, "%s: %s: the content is not what was committed", name_of(s), who);
}

static void must_be_own(int s) {
  struct side *side = &run.sides[s];
  struct content found, model;
  if (!side->db[0] || side->lossy) return;
  found = read_content(side->db[0], 0);
  if (found.code != SQLITE_OK) {
    if (!may_come_of_an_error(found.code)) {
      fault_of(s, "%s: its own connection: code %d: %s", name_of(s), found.code, found.problem);
    }
    return;
  }
  if (!side->twin || !side->twin_known || side->open_question) return;
  model = read_content(side->twin, 0);
  if (same_content(&found, &model)) {
    side->unsure = side->unsure && same_content(&model, &side->maybe);
    return;
  }
  if (is_maybe(side, &model, &found)) {
    side->twin_known = 0;
    return;
  }
  fault_of(s, "%s: its own connection does not find what its statements made", name_of(s));
}

/* ---- comparing the sides ---- */

static void compare_content(const struct content *a, const struct content *b, const char *who) {
  int lost = a->problem[0] && a->code == SQLITE_OK;
  if (lost || (a->code & 0xff) == SQLITE_CORRUPT || (a->code & 0xff) == SQLITE_NOTADB) {
    fault_of(PLAIN, "plain: %s: code %d: %s", who, a->code, a->problem);
  } else if (a->code != b->code) {
    fault_of(TDE, "%s: code %d, plain %d: %s%s", who, b->code, a->code, b->problem, a->problem);
  } else if (!same_content(a, b)) {
    fault_of(TDE, "%s: the content differs from plain's", who);
  } else if (b->problem[0] && b->code == SQLITE_OK) {
    fault_of(TDE, "%s: %s", who, b->problem);
  }
}

static void compare(const struct outcome both[SIDES], int with_rows) {
  const struct outcome *a = &both[PLAIN], *b = &both[TDE];
  if (over() || run.only_plain || run.diverged) return;
  if ((a->code & 0xff) == SQLITE_CORRUPT) {
    fault_of(PLAIN, "plain: %s", a->error);
  } else if (a->code != b->code) {
    fault_of(TDE, "code %d (%s), plain %d (%s)", b->code, b->error, a->code, a->error);
  } else if (a->autocommit != b->autocommit) {
    fault_of(TDE, "autocommit %d, plain %d", b->autocommit, a->autocommit);
  } else if (with_rows && (a->rows != b->rows || a->hash != b->hash)) {
    fault_of(TDE, "%d rows, first %s; plain %d, first %s", b->rows, b->first, a->rows, a->first);
  }
}

static void say(int s, const struct outcome *outcome) {
  if (!run.trace) return;
  printf("    %-5s code %d %s rows %d first %.30s%s\n", name_of(s), outcome->code, outcome->error,
    outcome->rows, outcome->first, outcome->autocommit ? "" : " (in a transaction)");
}

/* ---- steps ---- */

static void step_sql(int c, const char *sql, int with_rows) {
  struct outcome both[SIDES] = {0};
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    if (!side->db[c]) continue;
    /* Pages of a mapping are not in the cache: plain SQLite would spill, and lock, at other
    ** moments. */
    if (s == PLAIN && strstr(sql, "mmap_size")) {
      conclude(&both[s], side->db[c], SQLITE_OK);
      continue;
    }
    current_side = s;
    both[s] = run_sql(side->db[c], sql);
    if (c == 0 && strstr(sql, "journal_mode=")) note_modes(side);
    if (c == 0 && !strncmp(sql, "PRAGMA synchronous=", 19)) side->sync_off = sql[19] == 'O';
    say(s, &both[s]);
    follow(s, c, sql, &both[s]);
  }
  compare(both, with_rows);
}

static void step_blob(int c, const char *arguments) {
  struct outcome both[SIDES] = {0};
  char schema[16], table[16], sql[300];
  long long id;
  int at, count, seed;
  if (sscanf(arguments, "%15s %15s %lld %d %d %d", schema, table, &id, &at, &count, &seed) != 6) return;
  if (count > 60000 || count < 0) count = 60000;
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    static unsigned char bytes[60000];
    sqlite3_blob *blob = 0;
    int code;
    if (!side->db[c]) continue;
    current_side = s;
    memset(bytes, seed, (size_t)count);
    code = sqlite3_blob_open(side->db[c], schema, table, "v", id, 1, &blob);
    if (code == SQLITE_OK) {
      int closed;
      code = sqlite3_blob_write(blob, bytes, count, at);
      conclude(&both[s], side->db[c], code);
      closed = sqlite3_blob_close(blob);
      if (code == SQLITE_OK) code = closed;
    }
    conclude(&both[s], side->db[c], code);
    say(s, &both[s]);
    /* The same by SQL on the twin: zeroblob's bytes are replaced by those of a cast text. */
    snprintf(sql, sizeof sql, "UPDATE %s.%s SET v=CAST(substr(v,1,%d)||x'%02x' AS BLOB) WHERE 0", schema,
      table, at, seed & 0xff);
    if (both[s].code == SQLITE_OK && side->twin && side->twin_known) {
      if (sqlite3_blob_open(side->twin, schema, table, "v", id, 1, &blob) == SQLITE_OK) {
        sqlite3_blob_write(blob, bytes, count, at);
        sqlite3_blob_close(blob);
        note_committed(side);
      } else {
        fault_of(s, "%s: a value was written in place that its statements did not make", name_of(s));
      }
    } else if (both[s].code != SQLITE_OK) {
      follow(s, c, sql, &both[s]);
    }
  }
  compare(both, 0);
}

static void step_cursor(int c, const char *sql) {
  struct outcome both[SIDES] = {0};
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    int code;
    if (!side->db[c]) continue;
    current_side = s;
    sqlite3_finalize(side->cursor[c]);
    side->cursor[c] = 0;
    code = sqlite3_prepare_v2(side->db[c], sql, -1, &side->cursor[c], 0);
    if (code == SQLITE_OK) code = sqlite3_step(side->cursor[c]);
    if (code == SQLITE_ROW) take_row(&both[s], side->cursor[c]);
    conclude(&both[s], side->db[c], code);
    say(s, &both[s]);
  }
  compare(both, 1);
}

static void step_next(int c, int count) {
  struct outcome both[SIDES] = {0};
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    int code = SQLITE_ROW;
    if (!side->cursor[c]) continue;
    current_side = s;
    while (count > both[s].rows && (code = sqlite3_step(side->cursor[c])) == SQLITE_ROW) {
      take_row(&both[s], side->cursor[c]);
    }
    conclude(&both[s], side->db[c], code);
    if (code != SQLITE_ROW) {
      sqlite3_finalize(side->cursor[c]);
      side->cursor[c] = 0;
    }
    say(s, &both[s]);
  }
  compare(both, 1);
}

static void end_cursor(struct side *side, int c) {
  sqlite3_finalize(side->cursor[c]);
  side->cursor[c] = 0;
}

static void end_backup(struct side *side) {
  if (!side->backup_db) return;
  sqlite3_backup_finish(side->backup);
  sqlite3_close(side->backup_db);
  side->backup = 0;
  side->backup_db = 0;
}

static void step_backup(int pages) {
  struct outcome both[SIDES] = {0};
  struct content copies[SIDES];
  int ended = 0;
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    if (!side->db[0] || (pages == 0 && !side->backup)) continue;
    current_side = s;
    if (!side->backup) {
      int code = world_open_backup(s, &side->backup_db);
      if (code == SQLITE_OK) {
        side->backup = sqlite3_backup_init(side->backup_db, "main", side->db[0], "main");
      }
      if (!side->backup) {
        conclude(&both[s], side->backup_db, sqlite3_errcode(side->backup_db));
        end_backup(side);
        say(s, &both[s]);
        continue;
      }
    }
    if (pages) {
      int code = sqlite3_backup_step(side->backup, pages);
      both[s].rows = sqlite3_backup_remaining(side->backup);
      both[s].code = code == SQLITE_DONE ? SQLITE_OK : code;
      both[s].autocommit = code == SQLITE_DONE;
    } else {
      int code = sqlite3_backup_finish(side->backup);
      conclude(&both[s], side->backup_db, code);
      copies[s] = read_content(side->backup_db, code == SQLITE_OK);
      copies[s].has_aux = 0;
      sqlite3_close(side->backup_db);
      side->backup = 0;
      side->backup_db = 0;
      ended = 1;
    }
    say(s, &both[s]);
  }
  compare(both, 1);
  if (ended && !run.diverged && !over() && !run.only_plain) {
    compare_content(&copies[PLAIN], &copies[TDE], "the copy");
  }
}

static void step_snap(int c, char what) {
  struct outcome both[SIDES] = {0};
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    struct content found;
    if (!side->db[c]) continue;
    current_side = s;
    if (what == 's' && !side->has_snap[c] && sqlite3_get_autocommit(side->db[c])) {
      both[s] = run_sql(side->db[c], "BEGIN");
      side->snap[c] = read_content(side->db[c], 0);
      side->has_snap[c] = side->snap[c].code == SQLITE_OK;
      both[s].code = side->snap[c].code;
      if (!side->has_snap[c]) run_sql(side->db[c], "ROLLBACK");
    } else if (what == 'l' && side->has_snap[c] && !sqlite3_get_autocommit(side->db[c])) {
      found = read_content(side->db[c], 0);
      both[s].code = found.code;
      if (found.code == SQLITE_OK && !same_content(&found, &side->snap[c])) {
        if (!side->mode_off) fault_of(s, "%s: a snapshot changed", name_of(s));
      }
    } else if (what == 'u' && side->has_snap[c]) {
      both[s] = run_sql(side->db[c], "ROLLBACK");
      side->has_snap[c] = 0;
    }
    say(s, &both[s]);
  }
  compare(both, 0);
}

static void close_connection(int s, int c) {
  struct side *side = &run.sides[s];
  if (!side->db[c]) return;
  current_side = s;
  end_cursor(side, c);
  if (c == 0) {
    end_backup(side);
    if (side->twin && !sqlite3_get_autocommit(side->twin)) {
      sqlite3_exec(side->twin, "ROLLBACK", 0, 0, 0);
      note_committed(side);
    }
    if (side->mode_off && !sqlite3_get_autocommit(side->db[c])) side->lossy = 1;
    side->open_question = side->mode_loses = side->mode_off = side->sync_off = 0;
    side->wal = 0;
  }
  side->has_snap[c] = 0;
  sqlite3_close(side->db[c]);
  side->db[c] = 0;
}

static void step_open(int c) {
  struct outcome both[SIDES] = {0};
  EACH_SIDE(s) {
    if (run.sides[s].db[c]) continue;
    both[s].code = world_open(s, &run.sides[s].db[c]);
    if (both[s].code != SQLITE_OK) {
      sqlite3_close(run.sides[s].db[c]);
      run.sides[s].db[c] = 0;
    }
    if (c == 0 && both[s].code == SQLITE_OK) note_modes(&run.sides[s]);
    say(s, &both[s]);
  }
  compare(both, 0);
}

static void step_attach(int c) {
  struct outcome both[SIDES] = {0};
  EACH_SIDE(s) {
    if (!run.sides[s].db[c]) continue;
    current_side = s;
    conclude(&both[s], run.sides[s].db[c], world_attach(s, run.sides[s].db[c]));
    if (c == 0) note_modes(&run.sides[s]);
    say(s, &both[s]);
  }
  compare(both, 0);
}

static void step_memory(int c, int flush) {
  struct outcome both[SIDES] = {0};
  EACH_SIDE(s) {
    sqlite3 *db = run.sides[s].db[c];
    if (!db) continue;
    current_side = s;
    conclude(&both[s], db, flush ? sqlite3_db_cacheflush(db) : sqlite3_db_release_memory(db));
    if (!flush) both[s].code = SQLITE_OK;
    say(s, &both[s]);
  }
  compare(both, 0);
}

static void step_check(void) {
  struct content own[SIDES] = {0}, fresh[SIDES] = {0};
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    current_side = s;
    disks[s].paused++;
    if (run.diverged) {
      must_be_own(s);
      fresh[s] = fresh_content(s, 1);
      must_be_committed(s, &fresh[s], "a new connection", 0);
    } else {
      if (side->db[0]) own[s] = read_content(side->db[0], 0);
      fresh[s] = fresh_content(s, 1);
    }
    disks[s].paused--;
    if (run.trace) {
      printf("    %-5s new connection: code %d %s content %016llx\n", name_of(s), fresh[s].code,
        fresh[s].problem, (unsigned long long)fresh[s].schema[0]);
    }
  }
  if (run.diverged || run.only_plain || over()) return;
  compare_content(&own[PLAIN], &own[TDE], "its own connection");
  compare_content(&fresh[PLAIN], &fresh[TDE], "a new connection");
}

static void step_limit(const char *kind, int pages) {
  enum limit limit = !strcmp(kind, "main") ? LIMIT_MAIN : !strcmp(kind, "log") ? LIMIT_LOG
    : !strcmp(kind, "each") ? LIMIT_EACH : !strcmp(kind, "disk") ? LIMIT_DISK : NO_LIMIT;
  if (run.other >= 0) pages = run.other;
  EACH_SIDE(s) disk_limit(&disks[s], limit, pages, run.page_size);
  run.diverged = 1;
}

static void step_fault(const char *kind, int after) {
  enum operation fault = !strcmp(kind, "read") ? OP_READ : !strcmp(kind, "write") ? OP_WRITE
    : !strcmp(kind, "sync") ? OP_SYNC : !strcmp(kind, "truncate") ? OP_TRUNCATE
    : !strcmp(kind, "delete") ? OP_DELETE : OP_NONE;
  if (run.other >= 0) after = run.other + 1;
  EACH_SIDE(s) {
    disks[s].fault = fault;
    disks[s].fault_in = after;
  }
  run.diverged = 1;
}

/* Beside the encrypted side: plain SQLite could read the other one. */
static void step_stranger(int number, const char *what) {
  char why[500];
  current_side = TDE;
  if (!run.only_plain && !stranger_step(number, what, why)) fault_of(TDE, "%s", why);
}

/* ---- images ---- */

/* A kill in the middle of a write transaction loses what has no journal on the disk. */
static int kill_loses(const struct side *side) {
  return side->mode_loses && side->db[0]
    && sqlite3_txn_state(side->db[0], 0) == SQLITE_TXN_WRITE;
}

static void allow(struct image *image, const struct content *content) {
  if (image->count < 3) image->any[image->count++] = *content;
}

static void expect_image(struct side *side, struct image *image) {
  if (side->twin_known) {
    allow(image, &side->committed);
    if (side->has_maybe) allow(image, &side->maybe);
  }
}

static void step_image(void) {
  if (run.images == MAX_IMAGES) return;
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    struct image *image = &side->images[run.images];
    if (kill_loses(side) || side->lossy) continue;
    memset(image, 0, sizeof *image);
    image->joint = image->taken = 1;
    image->step = run.verdict.step;
    expect_image(side, image);
    image_take(s, run.images);
  }
  run.images++;
}

static void take_armed(int s) {
  image_take(s, run.armed);
  run.sides[s].images[run.armed].taken = 1;
}

static void arm_images(int after) {
  if (run.images == MAX_IMAGES) return;
  run.armed = run.images++;
  on_image = take_armed;
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    struct image *image = &side->images[run.armed];
    memset(image, 0, sizeof *image);
    if (side->mode_loses || side->lossy || !side->twin_known) continue;
    image->step = run.verdict.step + 1;
    image->joint = !side->wal && !side->sync_off;
    allow(image, &side->committed);
    disks[s].image_in = after;
  }
}

/* The step after `imageat` is over: what it committed is allowed, too. */
static void disarm_images(void) {
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    struct image *image = &side->images[run.armed];
    disks[s].image_in = 0;
    if (!image->taken) continue;
    if (side->mode_loses || side->lossy || !side->twin_known) image->taken = 0;
    else expect_image(side, image);
    if (side->wal) image->joint = 0;
  }
  run.armed = -1;
}

static int is_allowed(const struct side *side, const struct image *image, const struct content *found) {
  int each[2] = {0, 0};
  for (int i = 0; i < image->count; i++) {
    if (same_content(&image->any[i], found)) return 1;
    for (int k = 0; k < 2; k++) each[k] |= image->any[i].schema[k] == found->schema[k];
  }
  if (!image->joint && each[0] && each[1]) return 1;
  /* Before 3.50 SQLite forgets to write the checksums of some frames after a savepoint or a
  ** statement was rolled back: a kill loses what was committed from there on. */
  if (sqlite3_libversion_number() < 3050000 && run.has_log) {
    for (int i = 0; i < side->past_count && i < PAST; i++) {
      if (same_content(&side->past[i], found)) return 1;
    }
  }
  return 0;
}

/* Recovers the image as the next process would, and goes on with it. */
static struct content recover_image(int s, int number) {
  struct content found, after;
  sqlite3 *db = 0;
  image_put_back(s, number);
  if (s == TDE && run.has_strangers) {
    static const char *const looks[] = {"rw a.db", "recover", "wal", "wipe", "delete", "write", "close"};
    for (int i = 0; i < 7; i++) step_stranger(number % STRANGERS, looks[i]);
  }
  found = fresh_content(s, 1);
  if (found.code != SQLITE_OK || found.problem[0]) return found;
  if (world_open(s, &db) == SQLITE_OK) {
    found.code = sqlite3_exec(db, "CREATE TABLE IF NOT EXISTS goes_on(x); INSERT INTO goes_on VALUES(fill(1,5000))",
      0, 0, 0);
    if (found.code == SQLITE_OK) found.code = sqlite3_exec(db, "DROP TABLE goes_on", 0, 0, 0);
    if (found.code != SQLITE_OK) snprintf(found.problem, sizeof found.problem, "%s", sqlite3_errmsg(db));
  }
  sqlite3_close(db);
  if (found.code == SQLITE_OK) {
    after = fresh_content(s, 1);
    if (!same_content(&after, &found)) {
      found.code = after.code ? after.code : SQLITE_INTERNAL;
      snprintf(found.problem, sizeof found.problem, "after it went on: %.100s", after.problem);
    }
  }
  return found;
}

static void judge_images(void) {
  for (int i = 0; i < run.images && !over(); i++) {
    struct content found[SIDES] = {0};
    int at = run.sides[PLAIN].images[i].step;
    EACH_SIDE(s) {
      struct side *side = &run.sides[s];
      struct image *image = &side->images[i];
      int known = image->count > 0;
      if (!image->taken) continue;
      run.verdict.step = image->step;
      found[s] = recover_image(s, i);
      if (run.trace) {
        printf("image of step %d, %s: code %d %s content %016llx\n", at, name_of(s), found[s].code,
          found[s].problem, (unsigned long long)found[s].schema[0]);
      }
      if (found[s].code != SQLITE_OK || found[s].problem[0]) {
        fault_of(s, "%s: image of step %d: code %d: %s", name_of(s), image->step, found[s].code,
          found[s].problem);
      } else if (known && !is_allowed(side, image, &found[s])) {
        fault_of(s, "%s: image of step %d: not what was committed", name_of(s), image->step);
      } else if (!known && s == TDE && !run.diverged && !same_content(&found[PLAIN], &found[TDE])) {
        fault_of(s, "image of step %d: the content differs from plain's", image->step);
      }
    }
  }
}

/* ---- the whole ---- */

static void step(const char *line) {
  char word[20] = "";
  int length = 0, c = 0, number = 0, armed = run.armed;
  const char *rest;
  sscanf(line, "%19s%n", word, &length);
  rest = line + length;
  while (*rest == ' ') rest++;
  if (isdigit((unsigned char)*rest)) {
    char *end;
    c = number = (int)strtol(rest, &end, 10);
    if (c < 0 || c >= CONNECTIONS) c = 0;
    while (*end == ' ') end++;
    if (strcmp(word, "limit") && strcmp(word, "fault")) rest = end;
  }
  if (!strcmp(word, "tde")) snprintf(tde_uri, sizeof tde_uri, "%s", rest);
  else if (!strcmp(word, "uri")) snprintf(both_uri, sizeof both_uri, "%s", rest);
  else if (!strcmp(word, "open")) step_open(c);
  else if (!strcmp(word, "close")) { EACH_SIDE(s) close_connection(s, c); }
  else if (!strcmp(word, "attach")) step_attach(c);
  else if (!strcmp(word, "sql")) step_sql(c, rest, 1);
  else if (!strcmp(word, "set")) step_sql(c, rest, 0);
  else if (!strcmp(word, "cursor")) step_cursor(c, rest);
  else if (!strcmp(word, "next")) step_next(c, atoi(rest));
  else if (!strcmp(word, "end")) { EACH_SIDE(s) end_cursor(&run.sides[s], c); }
  else if (!strcmp(word, "blob")) step_blob(c, rest);
  else if (!strcmp(word, "cacheflush")) step_memory(c, 1);
  else if (!strcmp(word, "release")) step_memory(c, 0);
  else if (!strcmp(word, "snap")) step_snap(c, 's');
  else if (!strcmp(word, "look")) step_snap(c, 'l');
  else if (!strcmp(word, "unsnap")) step_snap(c, 'u');
  else if (!strcmp(word, "backup")) step_backup(number);
  else if (!strcmp(word, "image")) step_image();
  else if (!strcmp(word, "imageat")) arm_images(number);
  else if (!strcmp(word, "check")) step_check();
  else if (!strcmp(word, "stranger")) step_stranger(c, rest);
  else if (!strcmp(word, "limit") || !strcmp(word, "fault")) {
    char kind[20] = "";
    number = 0;
    sscanf(rest, "%19s %d", kind, &number);
    if (word[0] == 'l') step_limit(kind, number);
    else step_fault(kind, number);
  }
  EACH_SIDE(s) follow_rollback(s);
  if (armed >= 0 && !over()) disarm_images();
}

static void start(const struct script *script) {
  memset(&run, 0, sizeof run);
  run.script = script;
  run.armed = -1;
  run.page_size = 4096;
  tde_uri[0] = both_uri[0] = 0;
  for (int i = 0; i < script->count; i++) {
    const char *line = script->lines[i], *size = strstr(line, "page_size=");
    if (size) run.page_size = atoi(size + 10);
    if (!strncmp(line, "limit", 5) || !strncmp(line, "fault", 5) || !strncmp(line, "image", 5)) {
      run.with_twin = 1;
    }
    if (strstr(line, "WAL")) run.has_log = 1;
    if (!strncmp(line, "stranger", 8)) run.has_strangers = 1;
  }
  for (int s = 0; s < SIDES; s++) {
    struct side *side = &run.sides[s];
    struct disk *disk = &disks[s];
    world_empty(s);
    disk->limit = NO_LIMIT;
    disk->fault = OP_NONE;
    disk->fired = disk->paused = disk->image_in = 0;
    if (!run.with_twin) continue;
    sqlite3_open_v2(":memory:", &side->twin, SQLITE_OPEN_READWRITE, "unix");
    world_functions(side->twin);
    sqlite3_exec(side->twin, "ATTACH ':memory:' AS aux", 0, 0, 0);
    side->twin_known = 1;
    note_committed(side);
  }
}

static void finish(void) {
  struct content found[SIDES] = {0};
  for (int s = 0; s < SIDES; s++) {
    disks[s].limit = NO_LIMIT;
    disks[s].fault = OP_NONE;
  }
  /* An image that no step was left for is none. */
  EACH_SIDE(s) {
    disks[s].image_in = 0;
    if (run.armed >= 0) run.sides[s].images[run.armed].taken = 0;
  }
  for (int c = 0; c < CONNECTIONS; c++) step_snap(c, 'u');
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    current_side = s;
    for (int c = 0; c < CONNECTIONS; c++) end_cursor(side, c);
    end_backup(side);
    if (side->db[0] && !sqlite3_get_autocommit(side->db[0])) {
      struct outcome outcome = run_sql(side->db[0], "ROLLBACK");
      follow(s, 0, "ROLLBACK", &outcome);
    }
  }
  step_check();
  EACH_SIDE(s) {
    for (int c = CONNECTIONS - 1; c >= 0; c--) close_connection(s, c);
  }
  EACH_SIDE(s) {
    struct side *side = &run.sides[s];
    found[s] = fresh_content(s, 1);
    if (run.diverged) must_be_committed(s, &found[s], "the end", 1);
    if (found[s].code == SQLITE_OK && !side->lossy && !over()) {
      int code = every_page(s);
      if (code != SQLITE_OK) fault_of(s, "%s: reading every page: code %d", name_of(s), code);
    }
  }
  if (!run.diverged && !run.only_plain && !over()) {
    compare_content(&found[PLAIN], &found[TDE], "the end");
  }
  strangers_leave();
  judge_images();
}

struct verdict run_history(const struct script *script, int only_plain, int other, int trace) {
  start(script);
  run.only_plain = only_plain;
  run.other = other;
  run.trace = trace;
  for (int i = 0; i < script->count && !over(); i++) {
    run.verdict.step = i + 1;
    if (trace) printf("%3d %s\n", i + 1, script->lines[i]), fflush(stdout);
    step(script->lines[i]);
  }
  if (!over()) {
    run.verdict.step = script->count;
    finish();
  }
  for (int s = 0; s < SIDES; s++) {
    struct verdict verdict = run.verdict;
    for (int c = CONNECTIONS - 1; c >= 0; c--) close_connection(s, c);
    sqlite3_close(run.sides[s].twin);
    run.verdict = verdict;
  }
  strangers_leave();
  return run.verdict;
}
