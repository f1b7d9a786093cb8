//! What may come of a row, and nothing else.
//!
//! | file | accepted, beside errors and plain SQLite's rows |
//! |---|---|
//! | any, put back | replay: pages of other times, each as SQLite wrote it |
//! | record of a journal, put back into the transaction that writes it | nothing |
//! | envelope, put back | replay: an older envelope, which has no rows |
//! | database, emptied | an empty database, for a connection that is opened then or afterwards |
//! | log, recovered afterwards | it ends earlier: the last commits are gone |
//! | the same, after a checkpoint of a part | pages of several times, as in plain SQLite |
//! | journal, needed by another process | a damaged hot journal: pages of several times |
//! | wal-index | an older frame is replay: pages of other times |
//! | any, without a journal | after a failed transaction, pages of several times: SQLite's |
//!
//! And for all: after a rollback, free pages that were bad are zeros.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::ptr;

use rusqlite::{Connection, ffi};

use super::changes::{Change, Cut, Part, Row};
use super::history::{Answer, Do, Plan, ROTATING, Step, TRUNCATING, Who};
use super::stage::{Ran, Stage};
use super::watch::{Seen, content};
use super::{PAGE, PAGES_AT, TRAILER};
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::between::{File, Method};

/// Errors that tell of damage.
const TELLING: [c_int; 7] = [
    ffi::SQLITE_IOERR,
    ffi::SQLITE_CORRUPT,
    ffi::SQLITE_NOTADB,
    ffi::SQLITE_CANTOPEN,
    ffi::SQLITE_PROTOCOL,
    ffi::SQLITE_AUTH,
    // Of a lock that an error left behind, until its connection is closed.
    ffi::SQLITE_BUSY,
];

/// From which step on rows need not be those of one state of the model.
fn mixed_from(stage: &Stage, ran: &Ran, row: Row) -> usize {
    let later = |of: &dyn Fn(usize) -> bool| {
        (ran.step..stage.steps.len()).find(|&number| of(number)).unwrap_or(usize::MAX)
    };
    let fails = |number: usize| matches!(ran.answers[number], Answer::Failed(..));
    let writes = |number: usize| {
        let tx = stage.steps[number].tx;
        stage.steps.iter().any(|step| step.tx == tx && step.commits)
    };
    let breaks = |number: usize| matches!(stage.steps[number].what, Do::Kill | Do::Reopen);
    let unjournaled = match stage.config.rolls_back() {
        true => usize::MAX,
        false => later(&|number| fails(number) && writes(number)),
    };
    let of_row = match (row.file, row.change) {
        (File::Database, Change::PutBack(Part::CopyA | Part::CopyB | Part::Head, _)) => usize::MAX,
        // The connection that writes a journal knows its newest records.
        (File::Journal, Change::PutBack(..)) if is_written(stage, ran.step) => later(&breaks),
        (_, Change::PutBack(..) | Change::PutBackAll(_)) | (File::Index, _) => ran.step,
        (File::Database, _) if empties(stage, ran.at, row) => {
            let opens = |seen: &&Seen| (seen.file, seen.method) == (File::Database, Method::Open);
            if let Some(step) = opening(stage, ran) {
                return step;
            }
            let opened = stage.trace[ran.at..].iter().find(opens);
            opened.map_or(usize::MAX, |seen| seen.step).min(later(&breaks))
        }
        (File::Database | File::Other, _) => usize::MAX,
        (File::Log, _) => {
            // With the commits that a kill may cost, see `lost`.
            let copies = |number: usize| match &stage.steps[number].what {
                Do::Reopen => true,
                Do::Quiet(sql) => sql.contains("checkpoint") || sql == "VACUUM",
                _ => false,
            };
            let copied = later(&copies);
            let broken = later(&breaks);
            if copied < broken
                || matches!(stage.steps.get(broken), Some(step) if step.what == Do::Reopen)
            {
                broken
            } else {
                usize::MAX
            }
        }
        (File::Journal, _) => {
            if opens(stage, ran.step) {
                return ran.step;
            }
            later(&breaks)
        }
    };
    of_row.min(unjournaled)
}

/// Whether the writer is in the midst of a transaction of several statements in `step`, and not in
/// the one that ends it.
fn is_written(stage: &Stage, step: usize) -> bool {
    let of_tx = |tx: usize| {
        let mut steps = (0..stage.steps.len()).filter(move |&number| stage.steps[number].tx == tx);
        let first = steps.next();
        first.zip(steps.last())
    };
    let mut txs = stage.steps.iter().filter(|step| step.who == Who::Writer).map(|step| step.tx);
    txs.any(|tx| of_tx(tx).is_some_and(|(first, last)| first <= step && step < last))
}

/// What the transactions that failed may have done: nothing, or those that failed while committing,
/// all.
fn plans(stage: &Stage, ran: &Ran) -> Vec<Plan> {
    let mut plans = vec![Plan::new()];
    if !stage.config.rolls_back() {
        // Rows are compared up to the first failure alone.
        return plans;
    }
    let mut uncertain = 0;
    for (number, answer) in ran.answers.iter().enumerate() {
        let step = &stage.steps[number];
        let changes = stage.steps.iter().any(|other| other.tx == step.tx && other.commits);
        if !changes || !matches!(answer, Answer::Failed(..)) {
            continue;
        }
        let took = plans.clone();
        for plan in &mut plans {
            plan.insert(step.tx, number);
        }
        if step.commits && uncertain < 5 {
            uncertain += 1;
            plans.extend(took);
        }
    }
    plans
}

/// Whether the first connection is opened in `step`: a journal is played back, or a log recovered.
fn opens(stage: &Stage, step: usize) -> bool {
    let is_event = |step: &Step| matches!(step.what, Do::Kill | Do::Mark);
    let since = stage.steps[..step].iter().rposition(|step| step.what == Do::Kill).unwrap_or(0);
    stage.steps[since..step].iter().all(is_event)
}

/// Whether `row`, before call number `at`, leaves a database file of no byte.
fn empties(stage: &Stage, at: usize, row: Row) -> bool {
    let mut next = stage.trace[at..].iter().filter(|seen| seen.touches(File::Database));
    match row.change {
        Change::Cut(Cut::To(0)) => true,
        Change::Cut(Cut::BeforeNext) => next.next().is_some_and(|next| next.at == 0),
        _ => false,
    }
}

/// Where a connection was opened in the step at hand: from which step on the database may be an
/// empty one. Before it has read the envelope, and seen that nobody is creating the database, that
/// is this step; afterwards the step fails, and the next one opens a connection anew.
fn opening(stage: &Stage, ran: &Ran) -> Option<usize> {
    let before = &stage.trace[..ran.at];
    let of = |seen: &Seen, method: Method| (seen.file, seen.method) == (File::Database, method);
    let opened = before.iter().rposition(|seen| of(seen, Method::Open))?;
    let knows = before[opened..].iter().any(|seen| of(seen, Method::Read) && seen.at >= PAGES_AT);
    (before[opened].step == ran.step).then_some(ran.step + usize::from(knows))
}

/// The same plan, and those without the last commits before `boundary`, where the log was
/// recovered. What a checkpoint has put into the database before it was tampered with is not lost.
fn lost(stage: &Stage, ran: &Ran, plan: &Plan, boundary: usize) -> Vec<Plan> {
    let emptied = (0..ran.step)
        .rev()
        .find(|&number| {
            stage.steps[number].what == Do::Quiet(TRUNCATING.into())
                && matches!(ran.answers[number], Answer::Rows(_))
        })
        .unwrap_or_default();
    let mut without = plan.clone();
    let mut plans = vec![plan.clone()];
    for number in (emptied..boundary).rev() {
        let step = &stage.steps[number];
        if step.commits && !without.contains_key(&step.tx) {
            let first = stage.steps.iter().position(|other| other.tx == step.tx);
            without.insert(step.tx, first.unwrap_or(number));
            plans.push(without.clone());
        }
    }
    if emptied == 0 {
        without.insert(0, 0);
        plans.push(without);
    }
    plans
}

/// The first step whose rows are not those of `plan`.
fn differs(stage: &Stage, ran: &Ran, plan: &Plan, steps: std::ops::Range<usize>) -> Option<usize> {
    let want = stage.model.answers(plan);
    steps.clone().find(|&number| {
        let compared = matches!(stage.steps[number].what, Do::Sql(_))
            && matches!(ran.answers[number], Answer::Rows(_));
        compared && ran.answers[number] != want[number]
    })
}

/// The name of what came of `row`, or how it broke the promise.
pub fn judge(stage: &Stage, ran: &Ran, row: Row) -> Result<&'static str, String> {
    let mixed = mixed_from(stage, ran, row).min(stage.steps.len());
    let emptied = row.file == File::Database && empties(stage, ran.at, row);
    for (number, answer) in ran.answers.iter().enumerate() {
        if let Answer::Failed(code, words) = answer
            && number < mixed
            && !TELLING.contains(&(code & 0xff))
            // A refused PRAGMA answers SQLITE_ERROR, with the words themselves.
            && !(stage.steps[number].what == Do::Quiet(ROTATING.into())
                && ["failed authentication", "damaged", "older envelope restored"]
                    .iter()
                    .any(|told| words.contains(told)))
        {
            return Err(format!("step {number}, {}: error {code}: {words}", name(stage, number)));
        }
    }
    let kill = stage.steps.iter().position(|step| step.what == Do::Kill).unwrap_or_default();
    let boundary = match row.file {
        File::Log if opens(stage, ran.step) => Some(ran.step),
        File::Log if ran.step <= kill && mixed > kill => Some(kill),
        _ => None,
    };
    // The step furthest on that the best plan does not explain.
    let mut first: Option<(usize, Plan)> = None;
    let mut fits = false;
    'plans: for plan in plans(stage, ran) {
        let until = boundary.unwrap_or(mixed).min(mixed);
        let mut wrong = differs(stage, ran, &plan, 0..until);
        if let (None, Some(boundary)) = (wrong, boundary) {
            for plan in lost(stage, ran, &plan, boundary) {
                wrong = differs(stage, ran, &plan, until..mixed);
                if wrong.is_none() {
                    break;
                }
            }
        }
        match wrong {
            None => {
                fits = true;
                break 'plans;
            }
            Some(at) => first = first.max(Some((at, plan))),
        }
    }
    if let (false, Some((at, plan))) = (fits, first) {
        let want = stage.model.answers(&plan);
        let difference = first_difference(&ran.answers[at], &want[at]);
        return Err(format!("step {at}, {}: {difference}", name(stage, at)));
    }
    let failed = ran.answers.iter().any(|answer| matches!(answer, Answer::Failed(..)));
    let refused = pages(stage, ran, row, emptied)?;
    Ok(match (failed || refused, mixed < stage.steps.len()) {
        (true, _) => "an error",
        (false, true) => "a documented limit, or unharmed",
        (false, false) => "unharmed",
    })
}

fn name(stage: &Stage, number: usize) -> String {
    format!("{:?} {:?}", stage.steps[number].who, stage.steps[number].what)
}

fn first_difference(ours: &Answer, want: &Answer) -> String {
    let short = |text: &str| {
        let zeros = text.bytes().filter(|&byte| byte == 0).count();
        format!("{text:.30}, {} bytes, {zeros} of them zeros", text.len())
    };
    match (ours, want) {
        (Answer::Rows(ours), Answer::Rows(want)) => {
            let at = ours.iter().zip(want).position(|(a, b)| a != b);
            let row = |rows: &[String]| match at.or(Some(ours.len().min(want.len()))) {
                Some(at) => rows.get(at).map_or("no row".into(), |row| short(row)),
                None => String::new(),
            };
            format!("{} rows for {}: {:?} for {:?}", ours.len(), want.len(), row(ours), row(want))
        }
        other => format!("{other:?}"),
    }
}

/// Each page that is authentic afterwards has content that SQLite wrote there, or is one that never
/// was on the disk. Answers whether anything is bad or missing.
fn pages(stage: &Stage, ran: &Ran, row: Row, emptied: bool) -> Result<bool, String> {
    let both = matches!(row.change, Change::FlipBoth(_) | Change::Zero(Part::Head));
    let written = stage.steps[ran.step].what == Do::Quiet(ROTATING.into());
    let mut db = match stage.reopen(&ran.dir) {
        Ok(_) if row.file == File::Database && both && !written => {
            return Err("at the end: the envelope was written anew".into());
        }
        Ok(db) => db,
        Err(error) if TELLING.contains(&(error.sqlite_code() & 0xff)) => return Ok(true),
        Err(error) => return Err(format!("opened again: {error}")),
    };
    // Plays back a journal or recovers a log.
    let mut refused = db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).is_err();
    let mut checkpointed = true;
    if stage.config.has_log() {
        let done = db.query_row(TRUNCATING, [], |row| row.get::<_, i64>(0));
        checkpointed = done == Ok(0);
        refused |= !checkpointed;
    }
    let read = read_all(&mut db);
    let free = free_pages(&read);
    let mut wrong = Vec::new();
    for (page, found) in (1_u32..).zip(&read) {
        let Some(bytes) = found else { continue };
        let content = content(bytes);
        if ran.book.written.get(&page).is_some_and(|all| all.contains(&content)) {
            continue;
        }
        let zeros = content.iter().all(|&byte| byte == 0);
        // A shorter file that is put back has no such page.
        let gone = matches!(row.change, Change::PutBackAll(_)) && page > ran.left;
        // What only the log had may be lost with it.
        let logged =
            matches!(row.file, File::Database | File::Index) && ran.book.logged.contains(&page);
        let never = gone || !ran.existed.contains(&page) && !logged;
        let freed = !stage.config.has_log() && free.contains(&page);
        // A log that could not be copied has what a recovery sealed.
        let in_log = stage.config.has_log() && !checkpointed && row.file != File::Database;
        if !(zeros && (never || freed || in_log || emptied)) {
            wrong.push((page, zeros));
        }
    }
    if let Some((page, zeros)) = wrong.first() {
        let what = if *zeros { "zeros" } else { "what SQLite never wrote there" };
        let count = wrong.len();
        return Err(format!("at the end: page {page}, of {count} such, is authentic with {what}"));
    }
    let bad: Vec<u32> =
        (1_u32..).zip(&read).filter(|(_, found)| found.is_none()).map(|(page, _)| page).collect();
    if let Ok(found) = db.tde_verify("main", |_, _| ())
        && checkpointed
        && !bad.iter().all(|page| found.bad_pages.contains(page))
    {
        return Err(format!("verify finds bad {:?}, reading {bad:?}", found.bad_pages));
    }
    Ok(refused || !bad.is_empty())
}

/// All pages of the file, as SQLite would get them from it; `None` for a bad one.
fn read_all(db: &mut Connection) -> Vec<Option<Vec<u8>>> {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the connection is open, and this file control takes a pointer to such a pointer.
    let code = unsafe {
        ffi::sqlite3_file_control(
            db.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_FILE_POINTER,
            (&raw mut file).cast(),
        )
    };
    assert_eq!(code, ffi::SQLITE_OK);
    let mut size = 0;
    // SAFETY: the file stays open as long as the connection, which no other thread uses.
    unsafe { (*(*file).pMethods).xFileSize.unwrap()(file, &mut size) };
    let mut pages = Vec::new();
    for at in (0..size).step_by(PAGE) {
        let mut page = vec![0; PAGE];
        // SAFETY: as above; the buffer has room for a page.
        let code = unsafe {
            (*(*file).pMethods).xRead.unwrap()(file, page.as_mut_ptr().cast(), PAGE as c_int, at)
        };
        pages.push((code == ffi::SQLITE_OK).then_some(page));
    }
    pages
}

/// Pages past the end of the database, and leaves of the freelist.
fn free_pages(pages: &[Option<Vec<u8>>]) -> BTreeSet<u32> {
    let word = |page: &[u8], at: usize| {
        u32::from_be_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
    };
    let mut free = BTreeSet::new();
    let Some(Some(first)) = pages.first() else { return free };
    free.extend(word(first, 28) + 1..=pages.len() as u32);
    let mut trunk = word(first, 32);
    for _ in 0..pages.len() {
        let Some(Some(page)) = (trunk as usize).checked_sub(1).and_then(|at| pages.get(at)) else {
            break;
        };
        let most = (PAGE - TRAILER - 8) / 4;
        let count = (word(page, 4) as usize).min(most);
        free.extend((0..count).map(|leaf| word(page, 8 + 4 * leaf)));
        trunk = word(page, 0);
    }
    free
}
