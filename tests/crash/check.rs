//! A workload on a disk that writes down what happens, and the next process on what is left.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};
use sqlite_tde::provider::{
    Answer, KeyProvider, Keystore, ProviderError, UnwrapRequest, VersionRequest, WrapRequest,
    Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{OpenOptions, TdeConnection};

use super::workloads::{By, Mode, Workload};
use sqlite_tde_testkit::platform::{Platform, PlatformVfs};
use sqlite_tde_testkit::power::{Disk, Entry, Files, Image, Lie, PowerVfs};
use sqlite_tde_testkit::run;

/// A workload in one mode, on a VFS of its own.
pub struct Subject<'a> {
    pub workload: &'a Workload,
    pub mode: &'a Mode,
    /// Whether `tde` is between SQLite and the disk; without it, this is what SQLite itself can do.
    pub encrypted: bool,
    vfs: PowerVfs,
    /// The VFS that `tde` stands on, or plain SQLite: the disk, or a platform over it.
    base: &'static str,
    platform: Option<&'static Platform>,
    tde: String,
    keys: Arc<Keys>,
}

/// What happened in a run without power loss.
pub struct Recording {
    /// What was on the disk before.
    pub start: Files,
    pub log: Vec<Entry>,
    /// Length of the log when the database was opened, and after each step.
    pub marks: Vec<usize>,
    /// What each of the databases held at these marks.
    pub states: Vec<Vec<String>>,
    /// Whether the step before that mark committed into a write-ahead log.
    pub wal: Vec<bool>,
}

/// The first and the last state, by number of steps done, in which a database may be.
pub type Span = (usize, usize);

/// What was found on an image, and what was done to it meanwhile.
pub struct Found {
    /// The state of each database.
    pub spans: Vec<Span>,
    pub log: Vec<Entry>,
    /// A program without the library had looked before.
    pub looked: bool,
}

const PROVIDER: &str = "service";
const DATABASES: [(&str, &str); 2] = [("main", "/main.db"), ("aux", "/aux.db")];

impl<'a> Subject<'a> {
    pub fn new(
        workload: &'a Workload,
        mode: &'a Mode,
        encrypted: bool,
        platform: Option<&'static Platform>,
    ) -> Self {
        let vfs = PowerVfs::new(mode.powersafe);
        let base = platform.map_or(vfs.name, |platform| PlatformVfs::new(platform, vfs.name).name);
        let tde = format!("tde-{}", vfs.name);
        Self { workload, mode, encrypted, vfs, base, platform, tde, keys: Arc::default() }
    }

    pub fn name(&self) -> String {
        let Mode { journal, sync, page_size, cipher, powersafe } = self.mode;
        let kind = if self.encrypted { cipher.name() } else { "plain" };
        let disk = if *powersafe { "" } else { " not powersafe" };
        let platform =
            self.platform.map_or(String::new(), |platform| format!(" {}", platform.name));
        format!("{} [{journal} {sync} {page_size} {kind}{disk}{platform}]", self.workload.name)
    }

    /// Whether the database at `path` is an encrypted one.
    fn is_encrypted(&self, path: &str) -> bool {
        self.encrypted && !(self.workload.mixed && path == DATABASES[0].1)
    }

    /// What the name of a database's log ends with.
    pub fn log_suffix(&self, path: &str) -> &'static str {
        if self.is_encrypted(path) { "-tdewal" } else { "-wal" }
    }

    /// Schemas and paths.
    pub fn databases(&self) -> &'static [(&'static str, &'static str)] {
        &DATABASES[..1 + usize::from(self.workload.attached)]
    }

    /// Puts `files` on a new disk, below a VFS that knows nothing of what was done before.
    fn insert(&self, files: Files, lie: Option<Lie>) {
        self.vfs.insert(Disk::new(files, lie));
        if self.encrypted {
            let options = sqlite_tde_testkit::options(&self.tde)
                .base(self.base)
                // Nothing is there: a database that asks for it would fail.
                .keystore(Keystore::at("/nowhere/sqlite-tde"))
                .provider(PROVIDER, Arc::new(Service(Arc::clone(&self.keys))))
                .default_protector(&format!("{PROVIDER}:key"));
            sqlite_tde::register(options.replace(true)).unwrap();
        }
    }

    fn uri(&self, path: &str) -> String {
        if self.is_encrypted(path) {
            let options = OpenOptions::new().vfs(&self.tde).cipher(self.mode.cipher);
            return options.uri(path).unwrap();
        }
        format!("file:{path}?vfs={}", self.base)
    }

    fn connect(&self, path: &str) -> Result<Connection, String> {
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(self.uri(path), flags).map_err(words)?;
        db.busy_timeout(std::time::Duration::ZERO).map_err(words)?;
        Ok(db)
    }

    /// Opens all databases. Nothing is read before all are attached: a rollback over two databases
    /// needs the keys of both.
    fn open(&self) -> Result<Connection, String> {
        let db = self.connect(DATABASES[0].1)?;
        for (schema, path) in &self.databases()[1..] {
            let uri = self.uri(path);
            db.execute_batch(&format!("ATTACH '{uri}' AS {schema}")).map_err(words)?;
        }
        Ok(db)
    }

    fn settings(&self) -> String {
        let Mode { journal, sync, page_size, .. } = self.mode;
        let Workload { layout, settings, .. } = self.workload;
        let mut text = format!("PRAGMA page_size={page_size}; {layout}; {settings};");
        for (schema, _) in self.databases() {
            text.push_str(&format!(
                "PRAGMA {schema}.journal_mode={journal}; PRAGMA {schema}.synchronous={sync};"
            ));
        }
        text
    }

    /// Does the workload on a disk that may lie about syncs.
    pub fn record(&self, lie: Option<Lie>) -> Recording {
        self.insert(Files::new(), None);
        if !self.workload.setup.is_empty() {
            for (_, path) in self.databases() {
                let Mode { journal, page_size, .. } = self.mode;
                let layout = self.workload.layout;
                let db = self.connect(path).unwrap();
                run(&db, &format!("PRAGMA page_size={page_size}; {layout}")).unwrap();
                run(&db, self.workload.setup).unwrap();
                run(&db, &format!("PRAGMA journal_mode={journal}")).unwrap();
            }
        }
        let start = self.vfs.with(|disk| disk.files());
        self.insert(start.clone(), lie);

        let writer = self.open().unwrap();
        run(&writer, &self.settings()).unwrap();
        let mut reader = None;
        let mut recording = Recording {
            start,
            log: Vec::new(),
            marks: vec![self.log_len()],
            states: vec![self.state(&writer).unwrap()],
            wal: vec![self.mode.is_wal()],
        };
        for (by, sql) in self.workload.steps {
            let db = match by {
                By::Writer => &writer,
                By::Reader => reader.get_or_insert_with(|| self.open().unwrap()),
            };
            run(db, sql).unwrap_or_else(|error| panic!("{}: {sql}: {error}", self.workload.name));
            recording.marks.push(self.log_len());
            recording.states.push(self.state(&writer).unwrap());
            let mode: String =
                writer.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
            recording.wal.push(mode == "wal");
        }
        drop((reader, writer));
        recording.log = self.vfs.with(|disk| std::mem::take(&mut disk.log));
        recording
    }

    fn log_len(&self) -> usize {
        self.vfs.with(|disk| disk.log.len())
    }

    /// What each database holds, and at the end the protectors, where the workload changes them.
    fn state(&self, db: &Connection) -> rusqlite::Result<Vec<String>> {
        let mut state: Vec<String> = self
            .databases()
            .iter()
            .map(|(schema, _)| dump(db, schema))
            .collect::<rusqlite::Result<_>>()?;
        if self.has_keys() {
            state.push(db.query_row(KEYS, [], |row| row.get(0))?);
        }
        Ok(state)
    }

    /// Whether the protectors are part of a state.
    pub fn has_keys(&self) -> bool {
        self.encrypted && self.workload.keys
    }

    /// Who can open the image, before anybody has mended it: `span` is the first and the last step
    /// whose protectors may be in force. The bytes must hold no wrapped key but those of these
    /// steps, whatever software reads them; and of all parties that ever had a protector, those of
    /// one of the steps open the database, for reading alone, and all see the same. That writes
    /// nothing.
    pub fn parties(
        &self,
        image: &Image,
        states: &[Vec<String>],
        (first, last): Span,
    ) -> Result<(), String> {
        let keys = |step: usize| states[step].last().map_or("", String::as_str);
        let bytes = &image.files[DATABASES[0].1];
        let allowed: HashSet<u64> =
            (first..=last).flat_map(|step| handles(keys(step))).map(|handle| handle.1).collect();
        let envelope = &bytes[..bytes.len().min(ENVELOPE)];
        for at in 0..envelope.len().saturating_sub(HANDLE.len() + 8) {
            if !envelope[at..].starts_with(HANDLE) {
                continue;
            }
            let number = &envelope[at + HANDLE.len()..at + HANDLE.len() + 8];
            let number = u64::from_be_bytes(number.try_into().unwrap());
            if !allowed.contains(&number) {
                let of: Vec<usize> = (0..states.len())
                    .filter(|&step| handles(keys(step)).any(|handle| handle.1 == number))
                    .collect();
                return Err(format!(
                    "byte {at} has a key of the protectors after steps {of:?}, not {first} to \
                     {last}"
                ));
            }
        }
        self.insert(image.files.clone(), None);
        let all: BTreeSet<String> =
            states.iter().flat_map(|state| handles(&state[state.len() - 1])).map(|h| h.0).collect();
        let seen = self.who(None)?;
        if !(first..=last).any(|step| keys(step) == seen) {
            return Err(format!("{seen} are in force, not those after steps {first} to {last}"));
        }
        for party in all {
            let is_in = handles(&seen).any(|handle| handle.0 == party);
            match self.who(Some(&party)) {
                Ok(found) if is_in && found == seen => {}
                Err(_) if !is_in => {}
                other => return Err(format!("{seen} are in force; as {party}: {other:?}")),
            }
        }
        let written = self.vfs.with(|disk| disk.log.len());
        self.vfs.insert(Disk::default());
        if written == 0 { Ok(()) } else { Err(format!("a reader wrote {written} times")) }
    }

    /// The protectors that are in force, as who opens the database through `party` alone is told.
    fn who(&self, party: Option<&str>) -> Result<String, String> {
        let mut options = OpenOptions::new().vfs(&self.tde);
        options = options.flags(OpenFlags::SQLITE_OPEN_READ_ONLY);
        if let Some(party) = party {
            options = options.protector(party);
        }
        let db = sqlite_tde::open_with(DATABASES[0].1, &options).map_err(|e| e.to_string())?;
        let status = db.tde_status("main").map_err(|e| e.to_string())?;
        let all: Vec<String> =
            status.protectors.iter().map(|p| format!("{} {}", p.name, p.key_version)).collect();
        Ok(all.join(",") + if status.auto_rotate { "on" } else { "off" })
    }

    /// A program without the library opens every second image: it is told that each encrypted
    /// database is none, and changes nothing, but for the journal of a database without a byte.
    /// Answers whether it looked.
    pub fn stranger_looks(&self, image: &Image) -> Result<bool, String> {
        if !self.encrypted || image.fingerprint().is_multiple_of(2) {
            return Ok(false);
        }
        self.insert(image.files.clone(), None);
        let there = |path: &str| image.files.get(path).is_some_and(|bytes| !bytes.is_empty());
        for (_, path) in self.databases().iter().filter(|(_, path)| self.is_encrypted(path)) {
            if !there(path) {
                continue;
            }
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
            let uri = format!("file:{path}?vfs={}", self.vfs.name);
            let db = Connection::open_with_flags(uri, flags).map_err(words)?;
            let told = run(&db, "SELECT * FROM sqlite_schema").map_err(|error| error.to_string());
            if told != Err("file is not a database".into()) {
                return Err(format!("{path}: a stranger is told {told:?}"));
            }
        }
        if self.vfs.with(|disk| disk.files()) != image.files {
            return Err("a stranger changed a file".into());
        }
        Ok(true)
    }

    /// Opens `image` as the next process would. Each database must be in a state of its span, all
    /// in the same one where a transaction over several is atomic. `creating`: no transaction was
    /// done yet, so that there may be no whole envelope.
    pub fn check(
        &self,
        image: &Image,
        states: &[Vec<String>],
        spans: &[Span],
        creating: bool,
    ) -> Result<Found, String> {
        self.insert(image.files.clone(), None);
        let spans = self.look(states, spans, creating);
        let (log, exhausted) =
            self.vfs.with(|disk| (std::mem::take(&mut disk.log), disk.is_exhausted()));
        let files = self.vfs.with(|disk| disk.files());
        self.vfs.insert(Disk::default());
        if exhausted {
            return Err("it does not end".into());
        }
        let spans = spans?;
        for (_, path) in self.databases().iter().filter(|(_, path)| self.is_encrypted(path)) {
            let (a, b) = files[*path][..ENVELOPE].split_at(ENVELOPE / 2);
            if a[..COPY] != b[..COPY] {
                return Err(format!("{path}: the copies of the envelope differ afterwards"));
            }
        }
        Ok(Found { spans, log, looked: false })
    }

    fn look(
        &self,
        states: &[Vec<String>],
        spans: &[Span],
        creating: bool,
    ) -> Result<Vec<Span>, String> {
        if self.workload.mixed {
            // Each by itself, and in both orders: whoever comes first may delete the super-journal.
            let first = self.vfs.with(|disk| disk.files().values().map(Vec::len).sum::<usize>());
            for number in [first % 2, 1 - first % 2] {
                let db = self.connect(DATABASES[number].1)?;
                run(&db, "SELECT * FROM sqlite_schema").map_err(words)?;
            }
        }
        let db = self.open()?;
        let seen = self.state(&db).map_err(words)?;
        let found = self.place(states, spans, &seen)?;
        for (schema, path) in self.databases() {
            sound(&db, schema)?;
            if self.is_encrypted(path) {
                verified(&db, schema, creating)?;
            }
            run(&db, &LATER.replace("schema", schema))
                .map_err(|error| format!("{schema}: write afterwards: {error:?}"))?;
            sound(&db, schema)?;
        }
        if self.state(&db).map_err(words)? != seen {
            return Err("the write afterwards changed other data".into());
        }
        db.close().map_err(|(_, error)| format!("close: {error:?}"))?;
        Ok(found)
    }

    fn place(
        &self,
        states: &[Vec<String>],
        spans: &[Span],
        seen: &[String],
    ) -> Result<Vec<Span>, String> {
        // What was changed of the protectors stays, whether or not a commit is taken back.
        if self.has_keys() && seen.len() > 1 {
            let at = seen.len() - 1;
            let only = |all: &[Vec<String>], at: std::ops::Range<usize>| -> Vec<Vec<String>> {
                all.iter().map(|state| state[at.clone()].to_vec()).collect()
            };
            let keys = self.place_of_keys(&only(states, at..at + 1), spans[at], &seen[at])?;
            let mut found = self.place_of_data(&only(states, 0..at), &spans[..at], &seen[..at])?;
            found.push(keys);
            return Ok(found);
        }
        self.place_of_data(states, spans, seen)
    }

    fn place_of_keys(
        &self,
        states: &[Vec<String>],
        (first, last): Span,
        seen: &String,
    ) -> Result<Span, String> {
        let step = (first..=last).find(|&step| states[step][0] == *seen);
        step.map(|step| (step, step)).ok_or_else(|| {
            let all: Vec<usize> =
                (0..states.len()).filter(|&step| states[step][0] == *seen).collect();
            format!("the protectors are those after steps {all:?}, not after {first} to {last}")
        })
    }

    fn place_of_data(
        &self,
        states: &[Vec<String>],
        spans: &[Span],
        seen: &[String],
    ) -> Result<Vec<Span>, String> {
        let everywhere = || 0..states.len();
        let wrong = || {
            let places: Vec<Vec<usize>> = (0..seen.len())
                .map(|i| everywhere().filter(|&step| states[step][i] == seen[i]).collect())
                .collect();
            format!("the data is that after steps {places:?}, not after one of {spans:?}")
        };
        if self.mode.is_wal() {
            let one = |(i, &(first, last)): (usize, &Span)| {
                let step = (first..=last).find(|&step| states[step][i] == seen[i])?;
                Some((step, step))
            };
            return spans.iter().enumerate().map(one).collect::<Option<_>>().ok_or_else(wrong);
        }
        let (first, last) = spans[0];
        let step = (first..=last).find(|&step| states[step] == seen).ok_or_else(wrong)?;
        Ok(vec![(step, step); seen.len()])
    }
}

/// The protectors of the first database, and whether they rotate by themselves.
const KEYS: &str = "SELECT group_concat(name || ' ' || key_version) || (SELECT tde_auto_rotate())
    FROM (SELECT * FROM tde_key_protectors WHERE database_name = 'main' ORDER BY position)";

/// A write transaction of the process that finds the image; dumps leave its table out.
const LATER: &str = "BEGIN;
    CREATE TABLE IF NOT EXISTS schema.later(a INTEGER PRIMARY KEY, b);
    INSERT INTO schema.later(b) VALUES(zeroblob(2500)), (1);
    DELETE FROM schema.later WHERE a % 3 = 0; COMMIT";

fn words(error: rusqlite::Error) -> String {
    let code = error.sqlite_error().map_or(0, |e| e.extended_code);
    format!("{error} (code {code})")
}

/// Schema and rows of a database, without what [`LATER`] adds.
fn dump(db: &Connection, schema: &str) -> rusqlite::Result<String> {
    let one = |sql: &str| db.query_row(sql, [], |row| row.get::<_, Option<String>>(0));
    let mut out = one(&format!(
        "SELECT group_concat(type || name || coalesce(sql, '')) FROM
         (SELECT * FROM {schema}.sqlite_schema WHERE name <> 'later' ORDER BY name)"
    ))?
    .unwrap_or_default();
    for table in ["n", "t", "u", "v", "x", "y"] {
        if out.contains(&format!("CREATE TABLE {table}("))
            || out.contains(&format!("CREATE TABLE \"{table}\"("))
        {
            out.push_str(table);
            let rows = one(&format!(
                "SELECT group_concat(a || '=' || quote(b)) FROM
                 (SELECT a, b FROM {schema}.{table} ORDER BY a)"
            ))?;
            out.push_str(&rows.unwrap_or_default());
        }
    }
    Ok(out)
}

fn sound(db: &Connection, schema: &str) -> Result<(), String> {
    let answer: String = db
        .query_row(&format!("PRAGMA {schema}.integrity_check"), [], |row| row.get(0))
        .map_err(|error| format!("{schema}: integrity_check: {error:?}"))?;
    if answer == "ok" { Ok(()) } else { Err(format!("{schema}: {answer}")) }
}

fn is_empty(db: &Connection, schema: &str) -> Result<bool, String> {
    db.query_row(&format!("PRAGMA {schema}.page_count"), [], |row| row.get::<_, i64>(0))
        .map(|pages| pages == 0)
        .map_err(|error| format!("{schema}: page_count: {error:?}"))
}

fn verified(db: &Connection, schema: &str, creating: bool) -> Result<(), String> {
    match db.tde_verify(schema, |_, _| ()) {
        Ok(found) if found.is_clean() => Ok(()),
        Ok(found) if creating && found.bad_pages.is_empty() => Ok(()),
        // A journal that comes back takes back the first commit, and the file is empty, as it was.
        Err(sqlite_tde::Error::NotEncrypted) if creating || is_empty(db, schema)? => Ok(()),
        other => Err(format!("{schema}: verify: {other:?}")),
    }
}

/// Bytes of both copies of the envelope with their slots, and of one copy.
const ENVELOPE: usize = 16384;
const COPY: usize = 7680;

/// Before the number in each handle, so that it is found in a file.
const HANDLE: &[u8] = b"a handle of the service: ";

/// The protectors in what [`KEYS`] answers, each with the number of its handle.
fn handles(keys: &str) -> impl Iterator<Item = (String, u64)> {
    let all = keys.trim_end_matches("on").trim_end_matches("off");
    all.split(',').filter_map(|one| {
        let (name, number) = one.rsplit_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    })
}

/// Keys that a key service has handed out handles for. It outlives the processes that ask it.
#[derive(Default)]
struct Keys(Mutex<HashMap<Vec<u8>, (Vec<u8>, Secret)>>);

/// A process's way to the service: what it calls a wrapped key is a handle.
struct Service(Arc<Keys>);

impl KeyProvider for Service {
    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { dek, context, .. } = *request;
        let mut keys = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let version = keys.len() as u64;
        let handle = [HANDLE, &version.to_be_bytes()].concat();
        let copy = Secret::from_slice(dek.expose()).unwrap();
        keys.insert(handle.clone(), (context.encode(), copy));
        let key_version = version.to_string();
        Ok(Wrapped::new(key_version, "handle", handle).into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { wrapped, context, .. } = *request;
        let keys = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match keys.get(&wrapped.blob) {
            Some((bound, dek)) if *bound == context.encode() => {
                Ok(Secret::from_slice(dek.expose()).unwrap().into())
            }
            _ => Err(ProviderError::WrongKey("no such handle for this database".into())),
        }
    }

    /// Each time there is a newer one.
    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        let keys = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.len().to_string().into())
    }
}
