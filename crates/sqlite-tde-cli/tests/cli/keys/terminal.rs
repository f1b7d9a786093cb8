//! A person at a terminal, who is asked for the passphrase.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;

use super::*;

/// Runs `line` at a terminal of its own and gives it each of `answers` when it asks and does not
/// show what is typed. Gives back the exit code and what was on the screen.
fn at_terminal(place: &Place, line: &str, answers: &[&str]) -> (i32, String) {
    let (master, slave) = open_terminal();
    let input = || Stdio::from(slave.try_clone().unwrap());
    let mut command = place.command();
    command.args(line.split_whitespace()).stdin(input()).stdout(input()).stderr(input());
    // SAFETY: both calls are safe between fork and exec; descriptor 0 is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            match libc::setsid() == -1 || libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 {
                true => Err(std::io::Error::last_os_error()),
                false => Ok(()),
            }
        });
    }
    let mut child = command.spawn().unwrap();
    drop(command);
    drop(slave);
    let mut master = File::from(master);
    let mut screen = Vec::new();
    for answer in answers {
        while !asks(&screen) {
            assert!(read_some(&mut master, &mut screen), "{line}: {}", text(&screen));
        }
        while shows_typing(&master) {
            std::thread::yield_now();
        }
        screen.push(b'|');
        master.write_all(format!("{answer}\n").as_bytes()).unwrap();
    }
    while read_some(&mut master, &mut screen) {
        assert!(!asks(&screen), "{line}: {}", text(&screen));
    }
    (child.wait().unwrap().code().unwrap(), text(&screen))
}

fn asks(screen: &[u8]) -> bool {
    screen.ends_with(b"keystore: ") || screen.ends_with(b"again: ")
}

fn text(screen: &[u8]) -> String {
    String::from_utf8_lossy(screen).into_owned()
}

/// False when the other side has been closed.
fn read_some(master: &mut File, screen: &mut Vec<u8>) -> bool {
    let mut bytes = [0; 4096];
    match master.read(&mut bytes) {
        Ok(0) => false,
        Ok(len) => {
            screen.extend_from_slice(&bytes[..len]);
            true
        }
        Err(error) => error.kind() == ErrorKind::Interrupted,
    }
}

fn open_terminal() -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: both numbers are written, and the other three arguments may be null.
    let opened = unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: they are open, and nobody else's.
    let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
    let (master, slave) = (own(master), own(slave));
    // SAFETY: the descriptor is open. No other child of this process is to hold the terminal.
    assert_eq!(unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::fcntl(slave.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }, 0);
    (master, slave)
}

fn shows_typing(master: &File) -> bool {
    // SAFETY: a structure of numbers, which zeros are good for.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the structure is as long as the call expects.
    assert_eq!(unsafe { libc::tcgetattr(master.as_raw_fd(), &mut settings) }, 0);
    settings.c_lflag & libc::ECHO != 0
}

#[test]
fn a_person_is_asked_and_nobody_sees_the_answer() {
    let place = Place::filled();
    let asks = "passphrase of the keystore: |";
    let new = "new passphrase of the keystore: |";
    let again = "new passphrase of the keystore, again: |";
    let open = "sql enc.db SELECT(a)FROM(t)";
    for (line, answers, code, words) in [
        (open, &[][..], 0, &["hush"][..]),
        (
            "key passphrase set",
            &["a-first", "a-second"],
            3,
            &[new, again, "answers are not the same"],
        ),
        (open, &[], 0, &["hush"]),
        ("key passphrase set", &["", ""], 3, &[new, again, "is empty"]),
        ("key passphrase set", &["s3cret", "s3cret"], 0, &[new, again, "has a passphrase now"]),
        (open, &["s3cret"], 0, &[asks, "hush"]),
        ("key list", &["wr0ng"], 3, &[asks, "the passphrase from the prompt is not the one"]),
        ("key list", &["s3cret"], 0, &[asks, "payroll"]),
        (
            "key passphrase change",
            &["s3cret", "n3w", "n3w"],
            0,
            &[asks, new, again, "has another passphrase now"],
        ),
        ("key list", &["s3cret"], 3, &[asks, "is not the one"]),
        ("key passphrase remove", &["n3w"], 0, &[asks, "in the clear"]),
        (open, &[], 0, &["hush"]),
        ("key import k", &[], 2, &["no key given", "hint: name --file, --fd or --env, or pipe"]),
    ] {
        let (found, screen) = at_terminal(&place, line, answers);
        assert_eq!(found, code, "{line}: {screen}");
        for words in words {
            assert!(screen.contains(words), "{line}: {words:?} is not in {screen}");
        }
        for answer in answers.iter().filter(|answer| !answer.is_empty()) {
            assert!(!screen.contains(answer), "{line}: {screen}");
        }
    }
}
