//! Each source as a table of what it holds and what is read, and each way that it is refused.

use std::fs;
use std::io::Write;

use super::*;

fn words(answer: Result<Zeroizing<Vec<u8>>, ProviderError>) -> Result<String, String> {
    match answer {
        Ok(secret) => Ok(String::from_utf8(secret.to_vec()).unwrap()),
        Err(ProviderError::NotHere(text)) => Err(format!("not here: {text}")),
        Err(ProviderError::Unreachable(text)) => Err(format!("unreachable: {text}")),
        Err(ProviderError::Damaged(text)) => Err(format!("damaged: {text}")),
        Err(other) => Err(other.to_string()),
    }
}

/// Writes a file that only its owner may use.
fn private(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    #[cfg(unix)]
    set_mode(path, 0o600);
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn one_line_end_does_not_count_and_lengths_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let source = SecretSource::File(path.clone());
    let longest = "x".repeat(MAX_LEN);
    let empty = || Err(format!("damaged: a pin: file {} is empty", path.display()));
    let long = || Err(format!("damaged: a pin: file {} has over 4096 bytes", path.display()));
    let rows: [(&str, &str, Result<&str, String>); 12] = [
        ("no line end", "hush", Ok("hush")),
        ("a line feed", "hush\n", Ok("hush")),
        ("carriage return and line feed", "hush\r\n", Ok("hush")),
        ("only one line end", "hush\n\n", Ok("hush\n")),
        ("a carriage return alone", "hush\r", Ok("hush\r")),
        ("blanks", " hush ", Ok(" hush ")),
        ("two lines", "hush\nhush", Ok("hush\nhush")),
        ("nothing", "", empty()),
        ("a line end alone", "\r\n", empty()),
        ("the longest", &longest, Ok(&longest)),
        ("the longest and a line end", &format!("{longest}\r\n"), Ok(&longest)),
        ("one more", &format!("{longest}x"), long()),
    ];
    for (what, content, expected) in rows {
        private(&path, content.as_bytes());
        assert_eq!(words(source.read("a pin")), expected.map(str::to_owned), "{what}");
    }
    private(&path, longest.repeat(3).as_bytes());
    for answer in [source.read("a pin"), source.read_whole("a pin")] {
        assert_eq!(words(answer), long().map(str::to_owned), "far too long");
    }

    private(&path, b"hush\r\n");
    assert_eq!(words(source.read_whole("a pin")), Ok("hush\r\n".to_owned()));
}

#[test]
fn the_buffer_of_a_secret_does_not_grow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    for len in [1, MAX_LEN, MAX_LEN + 2, 10 * MAX_LEN] {
        private(&path, &vec![b'x'; len]);
        let secret = SecretSource::File(path.clone()).read_from(&open_private(&path).unwrap());
        assert_eq!(secret.unwrap().capacity(), MAX_LEN + 4, "{len} bytes");
    }
}

#[test]
fn files_that_are_not_there_or_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let answer = words(SecretSource::File(missing.clone()).read("a pin"));
    assert_eq!(answer, Err(format!("not here: there is no file {}", missing.display())));

    #[cfg(unix)]
    {
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        set_mode(&folder, 0o700);
        let answer = words(SecretSource::File(folder.clone()).read("a pin")).unwrap_err();
        assert!(answer.starts_with("unreachable: "), "{answer}");
        assert!(answer.contains(&*folder.to_string_lossy()), "{answer}");
    }
}

/// The row of systemd's credentials differs by who runs this: root's files are root's.
#[cfg(unix)]
#[test]
fn files_that_others_may_use_are_refused() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    private(&path, b"hush");
    let owner = fs::metadata(&path).unwrap();
    let roots = owner.uid() == 0 && owner.gid() == 0;
    for (mode, accepted) in [
        (0o600, true),
        (0o400, true),
        (0o700, true),
        (0o440, roots),
        (0o640, roots),
        (0o660, false),
        (0o620, false),
        (0o610, false),
        (0o604, false),
        (0o644, false),
        (0o602, false),
        (0o601, false),
    ] {
        set_mode(&path, mode);
        let answer = SecretSource::File(path.clone()).read("a pin");
        assert_eq!(answer.is_ok(), accepted, "{mode:03o}");
        let expected = 0o600;
        let refusal = ProviderError::LoosePermissions { path: path.clone(), mode, expected };
        assert!(answer.is_ok_and(|s| &**s == b"hush") || !accepted, "{mode:03o}");
        let metadata = fs::metadata(&path).unwrap();
        let checked = check_mode(&path, &metadata, others(&metadata), expected);
        assert!(accepted || checked == Err(refusal));
    }
}

/// The same for a file of another group, and for one of another user, which only root can create.
#[cfg(unix)]
#[test]
fn a_group_that_is_not_roots_may_not_read() {
    use std::os::unix::fs::{MetadataExt, chown};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    private(&path, b"hush");
    if fs::metadata(&path).unwrap().uid() == 0 {
        for (owner, group) in [(0, 12), (12, 0), (12, 12)] {
            chown(&path, Some(owner), Some(group)).unwrap();
            for (mode, accepted) in [(0o400, true), (0o440, false)] {
                set_mode(&path, mode);
                let answer = SecretSource::File(path.clone()).read("a pin");
                let accepted = accepted && owner == 0;
                assert_eq!(answer.is_ok(), accepted, "{owner}:{group} {mode:03o}");
                let other = matches!(answer, Err(ProviderError::OtherOwner { owner: 12, .. }));
                assert_eq!(other, owner == 12, "{owner}:{group} {mode:03o}");
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn a_descriptor_is_read_to_its_end_once_and_serves_again() {
    use std::os::fd::AsRawFd;
    let (reader, mut writer) = io::pipe().unwrap();
    let source = SecretSource::descriptor(reader.as_raw_fd());
    let clone = source.clone();
    // In two pieces, the second of which comes when the first was read.
    writer.write_all(b"hu").unwrap();
    let slow = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        writer.write_all(b"sh\n").unwrap();
    });
    assert_eq!(words(source.read("a pin")), Ok("hush".to_owned()));
    slow.join().unwrap();
    drop(reader);
    for again in [&source, &clone, &source.clone()] {
        assert_eq!(words(again.read("a pin")), Ok("hush".to_owned()));
        assert_eq!(words(again.read_whole("a pin")), Ok("hush\n".to_owned()));
    }
}

#[cfg(unix)]
/// What gives its content once is read before a fork, and a file from where it stands.
#[cfg(unix)]
#[test]
fn a_descriptor_is_read_itself() {
    use std::os::fd::AsRawFd;
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"early\n").unwrap();
    drop(writer);
    let source = Source::Descriptor(reader.as_raw_fd()).secret(None);
    drop(reader);
    assert_eq!(words(source.read("a pin")), Ok("early".to_owned()), "it is read when it is named");

    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    theirs.write_all(b"by a socket").unwrap();
    drop(theirs);
    let source = SecretSource::descriptor(ours.as_raw_fd());
    assert_eq!(words(source.read("a pin")), Ok("by a socket".to_owned()));

    // Nobody may open it any more, by any name.
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"skipped the rest").unwrap();
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    file.seek(io::SeekFrom::Start(8)).unwrap();
    for _ in 0..2 {
        let source = SecretSource::descriptor(file.as_raw_fd());
        assert_eq!(words(source.read("a pin")), Ok("the rest".to_owned()));
    }

    // Nobody waits for a writer before the secret is needed.
    let (reader, writer) = io::pipe().unwrap();
    drop(Source::Descriptor(reader.as_raw_fd()).secret(None));
    drop(writer);
}

#[test]
fn descriptors_that_give_nothing() {
    use std::os::fd::AsRawFd;
    let (reader, writer) = io::pipe().unwrap();
    let number = reader.as_raw_fd();
    drop(writer);
    let empty = SecretSource::descriptor(number);
    let expected = format!("damaged: a pin: descriptor {number} is empty");
    assert_eq!(words(empty.read("a pin")), Err(expected));

    let closed = words(SecretSource::descriptor(999_999).read("a pin"));
    assert_eq!(closed, Err("not here: descriptor 999999 is not open".to_owned()));
}

/// Setting a variable is not safe among threads, so one is taken that is there.
#[test]
fn the_environment() {
    let (name, value) = ("CARGO_MANIFEST_DIR", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let rows = [
        (name, Ok(value)),
        (
            "SQLITE_TDE_NO_SUCH_VARIABLE",
            Err("not here: a pin: environment variable SQLITE_TDE_NO_SUCH_VARIABLE is not set"
                .to_owned()),
        ),
    ];
    for (name, expected) in rows {
        assert_eq!(words(SecretSource::Environment(name.into()).read("a pin")), expected, "{name}");
    }
}

#[test]
fn a_prompt_is_asked_each_time_and_told_what_for() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let source = SecretSource::prompt(move |what| {
        heard.lock().unwrap().push(what.to_owned());
        match what {
            "nothing" => Ok(Zeroizing::new(String::new())),
            "nobody" => Err(io::Error::other("no terminal")),
            _ => Ok(Zeroizing::new("hush\n".to_owned())),
        }
    });
    for (what, expected) in [
        ("a pin", Ok("hush")),
        ("a pin", Ok("hush")),
        ("nothing", Err("damaged: nothing: the prompt is empty")),
        ("nobody", Err("unreachable: the prompt: no terminal")),
    ] {
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(words(source.read(what)), expected, "{what}");
    }
    assert_eq!(*asked.lock().unwrap(), ["a pin", "a pin", "nothing", "nobody"]);
}

#[test]
fn a_source_shows_where_and_never_what() {
    let prompt = SecretSource::prompt(|_| Ok(Zeroizing::new("hush".to_owned())));
    let kept = SecretSource::Descriptor(Descriptor {
        number: 3,
        kept: Arc::new(Mutex::new(Some(Zeroizing::new(b"hush".to_vec())))),
    });
    for (source, expected, waits_for) in [
        (SecretSource::File("/run/pin".into()), "file /run/pin", WaitsFor::Nothing),
        (kept, "descriptor 3", WaitsFor::Service),
        (SecretSource::Environment("PIN".into()), "environment variable PIN", WaitsFor::Nothing),
        (prompt, "the prompt", WaitsFor::Person),
    ] {
        assert_eq!(format!("{source:?}"), format!("SecretSource({expected})"));
        assert_eq!(source.waits_for(), waits_for, "{expected}");
        if let SecretSource::Descriptor(descriptor) = source {
            assert_eq!(format!("{descriptor:?}"), "Descriptor(3)");
        }
    }
}
