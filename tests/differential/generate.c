/* Random histories. A seed determines one. */
#include <stdarg.h>
#include "differential.h"

static uint64_t state;

static uint64_t next(void) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}
static int below(int n) { return n <= 1 ? 0 : (int)(next() % (uint64_t)n); }
static int between(int low, int high) { return low + below(high - low + 1); }
static int chance(int percent) { return below(100) < percent; }
#define PICK(list) ((list)[below((int)(sizeof(list) / sizeof *(list)))])

void script_add(struct script *script, const char *format, ...) {
  char line[1000];
  va_list arguments;
  if (script->count == MAX_STEPS) return;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  script->lines[script->count++] = strdup(line);
}

void script_free(struct script *script) {
  for (int i = 0; i < script->count; i++) free(script->lines[i]);
  script->count = 0;
}

enum kind { AGREE, LIMITS, ERRORS };

static struct plan {
  struct script *script;
  enum kind kind;
  int page_size, rows, depth, savepoints, aux, reader, open, images, seed, wal, backup;
  uint64_t strangers; /* where their random numbers are; 0: there are none */
  int came[STRANGERS];
} plan;

#define ADD(...) script_add(plan.script, __VA_ARGS__)

static const char *table(void) {
  static const char *const tables[] = {"t0", "t0", "t0", "t1", "t1", "t2"};
  static const char *const others[] = {"aux.u0", "aux.u0", "aux.u1"};
  return plan.aux && chance(35) ? PICK(others) : PICK(tables);
}

/* The length of a value: within a page, some pages, or little. */
static int length(void) {
  int size = plan.page_size;
  switch (below(6)) {
    case 0: return between(0, 40);
    case 1: return between(size - 200, size + 100);
    case 2: return between(size, size < 8192 ? 4 * size : size + 500);
    default: return between(size / 8, size * 7 / 8);
  }
}

static int row(void) { return between(1, plan.rows + 5); }

static void insert(void) {
  static const char *const conflicts[] = {"", "", " OR ABORT", " OR FAIL", " OR ROLLBACK",
    " OR IGNORE", " OR REPLACE", " OR REPLACE"};
  int first = chance(60) ? plan.rows + 1 : row(), count = between(1, 25);
  int from = chance(75) ? first : first + 3;
  /* The unique column repeats itself now and then: the last rows conflict. */
  const char *key = chance(80) ? "i*7" : "i%13";
  ADD("sql 0 WITH RECURSIVE c(i) AS (VALUES(%d) UNION ALL SELECT i+1 FROM c WHERE i<%d) "
    "INSERT%s INTO %s(id,k,n,v) SELECT i,%s,i%%100,%s(%s%d) FROM c", from, from + count - 1,
    PICK(conflicts), table(), key, chance(90) ? "fill" : "zeroblob", "", 0);
  /* The value is rewritten here: fill has two arguments, zeroblob one. */
  {
    char *line = plan.script->lines[plan.script->count - 1], *value = strstr(line, "(0) FROM c");
    char made[1000];
    int zero = strstr(line, "zeroblob(0)") != 0;
    snprintf(made, sizeof made, "%.*s(%s%d) FROM c", (int)(value - line), line,
      zero ? "" : (chance(70) ? "i+" : "i*17+"), zero ? length() : plan.seed++);
    if (!zero) {
      made[strlen(made) - strlen(") FROM c")] = 0;
      snprintf(made + strlen(made), sizeof made - strlen(made), ",%d) FROM c", length());
    }
    free(line);
    plan.script->lines[plan.script->count - 1] = strdup(made);
  }
  if (from + count - 1 > plan.rows && plan.rows < 120) plan.rows = from + count - 1;
}

static void where(char into[100]) {
  switch (below(5)) {
    case 0: into[0] = 0; break;
    case 1: snprintf(into, 100, " WHERE id>=%d", row()); break;
    case 2: snprintf(into, 100, " WHERE id%%%d=%d", between(2, 6), below(2)); break;
    case 3: snprintf(into, 100, " WHERE id BETWEEN %d AND %d", row(), row()); break;
    default: snprintf(into, 100, " WHERE n<%d", between(1, 100)); break;
  }
}

static void update(void) {
  char condition[100];
  where(condition);
  switch (below(7)) {
    case 0:
      ADD("sql 0 UPDATE %s SET n=n+%d%s", table(), between(1, 9), condition);
      break;
    case 1: /* fails at one row, after others */
      ADD("sql 0 UPDATE%s %s SET v=fill(id+%d,%d),n=CASE WHEN id=%d THEN NULL ELSE n END%s",
        chance(30) ? " OR FAIL" : chance(30) ? " OR ROLLBACK" : "", table(), plan.seed++, length(), row(),
        condition);
      break;
    case 2:
      ADD("sql 0 UPDATE%s %s SET k=k+%d%s", chance(40) ? " OR IGNORE" : "", table(), between(0, 14),
        condition);
      break;
    default:
      ADD("sql 0 UPDATE %s SET v=fill(id+%d,%d)%s", table(), plan.seed++, length(), condition);
  }
}

static void erase(void) {
  char condition[100];
  where(condition);
  if (!condition[0] && chance(60)) snprintf(condition, sizeof condition, " WHERE id>%d", row());
  ADD("sql 0 DELETE FROM %s%s", table(), condition);
}

static void read_rows(void) {
  char condition[100];
  where(condition);
  switch (below(5)) {
    case 0: ADD("sql %d SELECT count(*),sum(length(v)),sum(n) FROM %s", plan.reader && chance(50), table()); break;
    case 1: ADD("sql 0 SELECT id,n FROM %s%s ORDER BY v", table(), condition); break;
    case 2: ADD("sql 0 SELECT v FROM %s WHERE id=%d", table(), row()); break;
    case 3: ADD("cursor %d SELECT id,v FROM %s%s", plan.reader && chance(50), table(), condition); break;
    default: ADD("next %d %d", plan.reader && chance(50), between(1, 10)); break;
  }
}

static void schema(void) {
  const char *name = table();
  switch (below(7)) {
    case 0: ADD("sql 0 DROP TABLE IF EXISTS %s", name); break;
    case 1: case 2:
      ADD("sql 0 CREATE TABLE IF NOT EXISTS %s(id INTEGER PRIMARY KEY,k UNIQUE,n INT NOT NULL,v BLOB)", name);
      break;
    case 3: ADD("sql 0 CREATE INDEX IF NOT EXISTS %s ON t0(n,v)", chance(50) ? "x0" : "x1"); break;
    case 4: ADD("sql 0 DROP INDEX IF EXISTS x%d", below(2)); break;
    case 5: ADD("sql 0 CREATE TABLE IF NOT EXISTS s%d AS SELECT id,v FROM t0", below(2)); break;
    default: ADD("sql 0 DROP TABLE IF EXISTS s%d", below(2)); break;
  }
}

static void vacuum(void) {
  switch (below(4)) {
    case 0: ADD("sql 0 VACUUM"); break;
    case 1: ADD("sql 0 PRAGMA auto_vacuum=%d", below(3)); break;
    default: ADD("sql 0 PRAGMA incremental_vacuum(%d)", between(0, 10)); break;
  }
}

static void checkpoint(void) {
  static const char *const modes[] = {"PASSIVE", "FULL", "RESTART", "TRUNCATE"};
  ADD("sql %d PRAGMA wal_checkpoint(%s)", plan.reader && chance(20), PICK(modes));
}

static const char *journal_mode(void) {
  static const char *const modes[] = {"DELETE", "DELETE", "TRUNCATE", "PERSIST", "WAL", "WAL", "WAL",
    "MEMORY", "MEMORY"};
  return chance(3) ? "OFF" : PICK(modes);
}

static void pragma(void) {
  static const char *const syncs[] = {"OFF", "NORMAL", "FULL", "EXTRA"};
  switch (below(11)) {
    case 0: ADD("sql 0 PRAGMA journal_mode=%s", journal_mode()); break;
    case 1: ADD("sql 0 PRAGMA locking_mode=%s", chance(50) ? "EXCLUSIVE" : "NORMAL"); break;
    case 2: ADD("sql 0 PRAGMA synchronous=%s", PICK(syncs)); break;
    case 3: ADD("set 0 PRAGMA mmap_size=%d", chance(50) ? 0 : between(1, 1 << 22)); break;
    case 4: ADD("sql 0 PRAGMA journal_size_limit=%d", between(-1, 3) * 4096); break;
    case 5: ADD("sql 0 PRAGMA wal_autocheckpoint=%d", chance(50) ? between(1, 60) : 0); break;
    case 6: ADD("sql 0 PRAGMA secure_delete=%d", below(3)); break;
    case 7: ADD("sql 0 PRAGMA cache_size=%d", chance(70) ? between(2, 20) : between(50, 500)); break;
    case 8: ADD("sql 0 PRAGMA cache_spill=%d", below(2) ? between(2, 20) : below(2)); break;
    case 9: ADD("sql 0 PRAGMA locking_mode=NORMAL"); break;
    default: ADD("sql 0 PRAGMA page_count"); break;
  }
}

static void transaction(void) {
  if (plan.depth == 0) {
    static const char *const begins[] = {"BEGIN", "BEGIN IMMEDIATE", "BEGIN IMMEDIATE",
      "BEGIN EXCLUSIVE", "SAVEPOINT s0"};
    const char *begin = PICK(begins);
    ADD("sql 0 %s", begin);
    plan.depth = 1;
    plan.savepoints = begin[0] == 'S';
    return;
  }
  switch (below(8)) {
    case 0: case 1:
      if (plan.savepoints < 4) ADD("sql 0 SAVEPOINT s%d", plan.savepoints++);
      break;
    case 2: case 3:
      if (plan.savepoints) ADD("sql 0 ROLLBACK TO s%d", below(plan.savepoints));
      break;
    case 4:
      if (plan.savepoints) {
        plan.savepoints = below(plan.savepoints);
        ADD("sql 0 RELEASE s%d", plan.savepoints);
      }
      break;
    case 5: case 6:
      ADD("sql 0 COMMIT");
      plan.depth = plan.savepoints = 0;
      if (chance(40)) ADD("check");
      break;
    default:
      ADD("sql 0 ROLLBACK");
      plan.depth = plan.savepoints = 0;
      if (chance(50)) ADD("check");
  }
}

static void limits(void) {
  static const char *const kinds[] = {"main", "main", "main", "log", "each", "each", "disk", "disk"};
  static const char *const faults[] = {"read", "write", "write", "write", "sync", "sync", "truncate",
    "delete"};
  if (plan.kind == LIMITS) {
    if (chance(40)) ADD("limit off 0");
    else ADD("limit %s %d", PICK(kinds), chance(50) ? below(4) : below(40));
  } else {
    ADD("fault %s %d", PICK(faults), chance(60) ? between(1, 5) : between(1, 60));
  }
}

static void reader(void) {
  if (!plan.reader) {
    ADD("open 1");
    plan.reader = 1;
    if (chance(40)) ADD("sql 1 PRAGMA cache_size=%d", between(2, 20));
    return;
  }
  switch (below(9)) {
    case 0: case 1: ADD("snap 1"); break;
    case 2: case 3: case 4: ADD("look 1"); break;
    case 5: case 6: ADD("unsnap 1"); break;
    case 7:
      if (plan.kind == AGREE) {
        ADD("sql 1 UPDATE t0 SET v=fill(id+%d,%d) WHERE id=%d", plan.seed++, length(), row());
      }
      break;
    default:
      ADD("close 1");
      plan.reader = 0;
  }
}

static void reopen(void) {
  if (plan.depth && chance(70)) return;
  ADD("close 0");
  ADD("open 0");
  plan.depth = plan.savepoints = plan.aux = 0;
  ADD("sql 0 PRAGMA cache_size=%d", between(2, 20));
  if (chance(20)) ADD("sql 0 PRAGMA locking_mode=EXCLUSIVE");
  if (chance(20)) ADD("sql 0 PRAGMA synchronous=%s", chance(50) ? "OFF" : "FULL");
  if (chance(30)) ADD("sql 0 PRAGMA journal_mode=%s", journal_mode());
}

static void attach(void) {
  if (plan.aux || plan.depth) return;
  ADD("attach 0");
  ADD("sql 0 PRAGMA aux.journal_mode=%s", journal_mode());
  ADD("sql 0 PRAGMA aux.cache_size=%d", between(2, 20));
  ADD("sql 0 CREATE TABLE IF NOT EXISTS aux.u0(id INTEGER PRIMARY KEY,k UNIQUE,n INT NOT NULL,v BLOB)");
  plan.aux = 1;
}

/* Their random numbers are their own: a history is the same with and without them. */
static void stranger(void) {
  uint64_t kept = state;
  int who;
  state = plan.strangers;
  if (chance(15)) {
    who = below(STRANGERS);
    if (!plan.came[who]) {
      ADD("stranger %d %s %s", who, chance(80) ? "rw" : "ro", plan.aux && chance(30) ? "b.db" : "a.db");
      plan.came[who] = 1;
    }
    for (int i = below(3); i > 0; i--) ADD("stranger %d %s", who, stranger_action(below(1000)));
    if (chance(40)) {
      if (chance(70)) ADD("stranger %d close", who);
      else if (chance(50)) ADD("stranger %d kill", who);
      else ADD("stranger %d kill %s", who, stranger_action(below(1000)));
      plan.came[who] = 0;
    }
  }
  plan.strangers = state;
  state = kept;
}

static void image(void) {
  if (plan.images == MAX_IMAGES) return;
  plan.images++;
  if (chance(50)) ADD("image");
  else ADD("imageat %d", chance(70) ? between(1, 12) : between(1, 80));
}

static void begin_database(void) {
  static const int sizes[] = {1024, 1024, 1024, 2048, 4096, 4096, 4096, 8192, 16384, 65536};
  static const char *const syncs[] = {"OFF", "NORMAL", "FULL", "FULL", "EXTRA"};
  char uri[200] = "";
  plan.page_size = PICK(sizes);
  if (chance(30)) strcat(uri, chance(50) ? "&tde_cipher=aes-256-ctr-hmac-sha256" : "&tde_cipher=aegis-256x4");
  if (chance(25)) strcat(uri, "&tde_read_ahead=off");
  if (chance(25)) strcat(uri, "&tde_gather_writes=off");
  if (uri[0]) ADD("tde %s", uri + 1);
  if (chance(15)) ADD("uri psow=0");
  ADD("open 0");
  ADD("sql 0 PRAGMA page_size=%d", plan.page_size);
  if (chance(40)) ADD("sql 0 PRAGMA auto_vacuum=%d", between(1, 2));
  ADD("sql 0 PRAGMA cache_size=%d", chance(80) ? between(2, 20) : 500);
  if (chance(30)) ADD("sql 0 PRAGMA cache_spill=%d", between(1, 12));
  if (chance(30)) ADD("sql 0 PRAGMA locking_mode=EXCLUSIVE");
  ADD("sql 0 PRAGMA synchronous=%s", PICK(syncs));
  ADD("sql 0 PRAGMA journal_mode=%s", journal_mode());
  if (chance(40)) ADD("sql 0 PRAGMA wal_autocheckpoint=%d", chance(50) ? 0 : between(1, 40));
  if (chance(30)) ADD("set 0 PRAGMA mmap_size=%d", 1 << 24);
  if (chance(20)) ADD("sql 0 PRAGMA secure_delete=%d", between(1, 2));
  if (chance(15)) ADD("sql 0 PRAGMA journal_size_limit=%d", below(3) * 8192);
  for (int i = 0; i < 3; i++) {
    ADD("sql 0 CREATE TABLE t%d(id INTEGER PRIMARY KEY,k UNIQUE,n INT NOT NULL,v BLOB)", i);
  }
  if (chance(40)) ADD("sql 0 CREATE INDEX x0 ON t0(n,v)");
}

void generate(struct script *script, uint64_t seed) {
  int steps, kind;
  state = seed;
  memset(&plan, 0, sizeof plan);
  plan.script = script;
  script->count = 0;
  kind = below(10);
  plan.kind = kind < 5 ? AGREE : kind < 8 ? LIMITS : ERRORS;
  plan.seed = 1;
  plan.strangers = seed % 4 == 0 ? seed ^ 0x5374726e67657273u : 0;
  begin_database();
  if (chance(30)) reader();
  if (chance(20)) attach();
  for (int i = between(1, 4); i > 0; i--) insert();
  if (chance(50)) checkpoint();
  steps = between(20, 90);
  while (steps-- > 0) {
    int what = below(100);
    if (plan.strangers) stranger();
    if (what < 22) transaction();
    else if (what < 38) update();
    else if (what < 48) insert();
    else if (what < 54) erase();
    else if (what < 59) read_rows();
    else if (what < 62) schema();
    else if (what < 64) vacuum();
    else if (what < 68) checkpoint();
    else if (what < 73) pragma();
    else if (what < 79) reader();
    else if (what < 81) reopen();
    else if (what < 82) attach();
    else if (what < 84) ADD("cacheflush %d", 0);
    else if (what < 85) ADD("release 0");
    else if (what < 86) ADD("blob main t%d %d %d %d %d", below(2), row(), between(0, 50),
      between(1, length() + 1), below(256));
    else if (what < 88) { if (plan.kind == AGREE) ADD("backup %d", chance(25) ? 0 : between(1, 30)); }
    else if (what < 91) { if (plan.kind == AGREE || chance(20)) image(); }
    else if (what < 93) ADD("check");
    else if (plan.kind != AGREE) limits();
  }
}
