"""Generates sqllogictest files in SQLite's dialect: make_slt.py DIRECTORY SEEDS

The questions are made from a seed; the answers are those of the SQLite that Python has, in memory.
A file mixes statements that change tables, within and without transactions and savepoints, with
queries that filter, join, group, sort, nest and aggregate; it lets the database grow, be vacuumed and
change its journal mode.
"""
import hashlib
import os
import random
import sqlite3
import sys

COLUMNS = "abcde"


def text(value, kind):
    """A value as sqllogictest prints it."""
    if value is None:
        return "NULL"
    if kind == "I":
        return "%d" % value
    if kind == "R":
        return "%.3f" % value
    return str(value) or "(empty)"


class File:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.lines = [f"# seed {seed}", "hash-threshold 8", ""]
        self.rows = 0

    def statement(self, sql):
        try:
            self.db.execute(sql).fetchall()
            outcome = "ok"
        except sqlite3.Error:
            outcome = "error"
        self.lines += [f"statement {outcome}", sql, ""]

    def query(self, kinds, sort, sql):
        rows = [[text(v, k) for v, k in zip(row, kinds)] for row in self.db.execute(sql)]
        if sort == "rowsort":
            rows.sort()
        values = [value for row in rows for value in row]
        self.lines += [f"query {kinds} {sort}", sql, "----"]
        if len(values) > 8:
            digest = hashlib.md5("".join(v + "\n" for v in values).encode()).hexdigest()
            values = [f"{len(values)} values hashing to {digest}"]
        self.lines += [*values, ""]

    def number(self):
        return self.random.randint(-50, 250)

    def value(self):
        return self.random.choice(["NULL", str(self.number()), str(self.number())])

    def table(self):
        return self.random.choice(["t1", "t2", "t3"])

    def column(self):
        return self.random.choice(COLUMNS)

    def condition(self, depth=0):
        a, b = self.column(), self.column()
        pick = self.random.randrange(9 if depth < 2 else 6)
        if pick == 0:
            return f"{a} BETWEEN {self.number()} AND {self.number() + 60}"
        if pick == 1:
            return f"{a} IN ({self.number()}, {self.number()}, {self.number()})"
        if pick == 2:
            return f"{a} IS {self.random.choice(['NULL', 'NOT NULL'])}"
        if pick in (3, 4):
            return f"{a} {self.random.choice(['<', '<=', '>', '>=', '=', '<>'])} {self.number()}"
        if pick == 5:
            return f"{a} < {b}"
        if pick == 6:
            return f"EXISTS (SELECT 1 FROM {self.table()} AS x WHERE x.{a} = t.{b})"
        if pick == 7:
            return f"NOT ({self.condition(depth + 1)})"
        word = self.random.choice(["AND", "OR"])
        return f"({self.condition(depth + 1)} {word} {self.condition(depth + 1)})"

    def begin(self):
        for name in ("t1", "t2", "t3"):
            self.statement(f"CREATE TABLE {name}(a INTEGER, b INTEGER, c INTEGER, d INTEGER, "
                           f"e INTEGER, s TEXT{', UNIQUE(a, b)' if name == 't2' else ''})")
        self.statement("CREATE INDEX t1b ON t1(b, c)")
        self.statement("CREATE INDEX t3e ON t3(e DESC)")
        self.statement("CREATE VIEW v AS SELECT a, b, c, d, e FROM t1 UNION ALL "
                       "SELECT e, d, c, b, a FROM t3")
        for _ in range(30):
            self.insert()

    def insert(self):
        self.rows += 1
        values = ", ".join(self.value() for _ in COLUMNS)
        long = self.random.choice(["''", f"'row {self.rows}'", f"hex(zeroblob({self.number() * 9 + 500}))"])
        self.statement(f"INSERT INTO {self.table()} VALUES({values}, {long})")

    def change(self):
        table, column = self.table(), self.column()
        pick = self.random.randrange(8)
        if pick < 4:
            self.insert()
        elif pick == 4:
            self.statement(f"INSERT OR IGNORE INTO {table} SELECT a + 1, b, c, d, e, s FROM "
                           f"{self.table()} AS t WHERE {self.condition()} ORDER BY rowid LIMIT 20")
        elif pick == 5:
            self.statement(f"UPDATE OR IGNORE {table} AS t SET {column} = {self.column()} + 1, "
                           f"s = s || 'x' WHERE {self.condition()}")
        elif pick == 6:
            self.statement(f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} AS t "
                           f"WHERE {self.condition()} ORDER BY rowid LIMIT 5)")
        else:
            self.statement(f"REPLACE INTO t2 VALUES({self.number()}, {self.number()}, 1, 2, 3, '')")

    def ask(self):
        a, b, table = self.column(), self.column(), self.table()
        where = self.condition()
        pick = self.random.randrange(8)
        if pick == 0:
            self.query("III", "rowsort", f"SELECT {a}, {b}, length(s) FROM {table} AS t WHERE {where}")
        elif pick == 1:
            self.query("IIR", "nosort", f"SELECT {a}, count(*), avg({b}) FROM {table} AS t "
                       f"WHERE {where} AND {b} IS NOT NULL GROUP BY {a} ORDER BY 1, 2")
        elif pick == 2:
            self.query("II", "rowsort", f"SELECT t.{a}, y.{b} FROM (SELECT * FROM {table} AS t WHERE "
                       f"{where}) AS t JOIN t2 AS y ON t.a = y.b")
        elif pick == 3:
            self.query("II", "nosort", f"SELECT count(*), sum(e) FROM v AS t WHERE {where}")
        elif pick == 4:
            self.query("IT", "nosort", f"SELECT {a}, substr(s, 1, 9) FROM {table} AS t WHERE {where} "
                       f"ORDER BY {a} DESC, s, rowid LIMIT {self.random.randint(1, 12)}")
        elif pick == 5:
            self.query("I", "rowsort", f"SELECT {a} FROM t1 UNION SELECT {b} FROM t2 "
                       f"EXCEPT SELECT {a} FROM t3")
        elif pick == 6:
            self.query("III", "nosort", f"SELECT rowid, {a}, sum({b}) OVER (ORDER BY rowid "
                       f"ROWS 3 PRECEDING) FROM {table} AS t WHERE {where} ORDER BY rowid")
        else:
            self.query("I", "nosort", f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
                       f"WHERE i < {self.random.randint(2, 40)}) SELECT sum(i * (SELECT count(*) FROM "
                       f"{table} AS t WHERE {where})) FROM n")

    def transaction(self):
        self.statement("BEGIN")
        for _ in range(self.random.randint(1, 8)):
            self.change()
            if self.random.random() < 0.2:
                self.statement("SAVEPOINT s")
                for _ in range(3):
                    self.change()
                self.ask()
                self.statement(self.random.choice(["ROLLBACK TO s", "RELEASE s"]))
        self.ask()
        self.statement(self.random.choice(["COMMIT", "COMMIT", "ROLLBACK"]))

    def upkeep(self):
        mode = self.random.choice(["wal", "delete", "truncate", "persist"])
        # In memory, where the answers come from, the mode is another one: no result is asked for.
        self.statement(self.random.choice(
            ["VACUUM", "REINDEX", "ANALYZE", f"PRAGMA journal_mode={mode}",
             "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA incremental_vacuum"]))
        self.query("T", "nosort", "PRAGMA integrity_check")

    def make(self, length):
        self.begin()
        for _ in range(length):
            self.random.choice([self.change, self.ask, self.ask, self.transaction])()
            if self.random.random() < 0.04:
                self.upkeep()
        for table in ("t1", "t2", "t3"):
            self.query("IIIIIT", "rowsort", f"SELECT a, b, c, d, e, s FROM {table}")
        return "\n".join(self.lines)


directory, seeds = sys.argv[1], int(sys.argv[2])
for seed in range(seeds):
    with open(os.path.join(directory, f"seed{seed:03}.test"), "w", encoding="utf-8") as file:
        file.write(File(seed).make(250))
