//! Ways into a PKCS#11 token and out of it: PINs, tokens that are not there or come back, threads,
//! forks, and a host that uses the same module. On SoftHSM2 and kryoptic; see `tests/pkcs11.rs`.

#[path = "pkcs11/place.rs"]
mod place;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use cryptoki::slot::Slot;
use place::*;
use sqlite_tde::provider::conformance::Direct;
use sqlite_tde::provider::{KeyProvider, Keystore, Pkcs11, SecretSource, Token, Wrapped};
use sqlite_tde::secret::Secret;
use sqlite_tde::{Options, TdeConnection};
use sqlite_tde_testkit::process::only;

/// Three times as many wrong PINs as kryoptic takes before it locks.
const MANY: usize = 30;

#[test]
fn a_wrong_pin_is_shown_to_a_token_once() {
    on_each("a_wrong_pin_is_shown_to_a_token_once", |place| {
        place.user_tool(&["--keygen", "--key-type", "AES:32", "--label", "k", "--id", "01"]);
        place.write_pin("wrong", "wrong-1234");
        let wrong = place.spied(SecretSource::File(place.path("wrong")));
        for _ in 0..MANY {
            wrap_fails(&wrong, "k", "denied", "not retried");
        }
        place.assert_logins(1);

        // Neither is it by another provider, whatever it has it from.
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let prompt = SecretSource::Prompt(Arc::new(move |what: &str| {
            assert!(what.contains("PIN"), "{what}");
            count.fetch_add(1, Ordering::SeqCst);
            Ok(String::from("wrong-1234").into())
        }));
        wrap_fails(&place.spied(prompt), "k", "denied", "not retried");
        assert!(asked.load(Ordering::SeqCst) > 0);
        place.assert_logins(1);

        // Another PIN is another matter, and so is the right one in the same place.
        place.write_pin("other", "wrong-5678");
        let other = place.spied(SecretSource::File(place.path("other")));
        wrap_fails(&other, "k", "denied", "not retried");
        place.assert_logins(2);
        place.write_pin("wrong", &format!("{PIN}\n"));
        let dek = Secret::random().unwrap();
        let wrapped = wrong.wrap_key("k", &dek, &CONTEXT).unwrap();
        assert_eq!(outcome(wrong.unwrap_key("k", &wrapped, &CONTEXT), &dek), "ok");
        place.assert_logins(3);
    });
}

/// Nothing of the token is locked while someone is asked for its PIN.
#[test]
fn a_prompt_for_the_pin_may_use_the_module_but_not_need_the_pin() {
    on_each("a_prompt_for_the_pin_may_use_the_module_but_not_need_the_pin", |place| {
        place.user_tool(&["--keygen", "--key-type", "AES:32", "--label", "k", "--id", "01"]);
        let itself: Arc<Mutex<Option<Arc<Pkcs11>>>> = Arc::default();
        let (within, told) = (Arc::clone(&itself), Arc::new(Mutex::new(Vec::new())));
        let (tell, other) = (Arc::clone(&told), place.provider());
        let prompt = SecretSource::prompt(move |_| {
            let asking = within.lock().unwrap().clone().unwrap();
            asking.forget();
            let dek = Secret::random().unwrap();
            for provider in [&*asking, &other] {
                let answer = provider.wrap_key("k", &dek, &CONTEXT);
                tell.lock().unwrap().push(answer.err().map(|error| error.to_string()));
            }
            Ok(String::from(PIN).into())
        });
        let asking = Arc::new(place.spied(prompt));
        *itself.lock().unwrap() = Some(Arc::clone(&asking));
        let dek = Secret::random().unwrap();
        let wrapped = asking.wrap_key("k", &dek, &CONTEXT).unwrap();
        assert_eq!(outcome(asking.unwrap_key("k", &wrapped, &CONTEXT), &dek), "ok");
        itself.lock().unwrap().take();
        let told = told.lock().unwrap();
        let [Some(refused), None] = &told[..] else { panic!("{told:?}") };
        assert!(refused.contains("by this very thread"), "{refused}");
    });
}

#[test]
fn pins_that_cannot_be_right() {
    on_each("pins_that_cannot_be_right", |place| {
        place.write_pin("empty", "");
        place.write_pin("loose", PIN);
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(place.path("loose"), mode).unwrap();
        for (name, want, words) in [
            ("nowhere", "not here", "no file"),
            ("empty", "damaged", "is empty"),
            ("loose", "loose", "mode 644"),
        ] {
            let pin = SecretSource::File(place.path(name));
            wrap_fails(&Pkcs11::new(&place.module, place.token(), pin), "k", want, words);
        }
        wrap_fails(&place.provider(), "k", "not here", "--keygen");
    });
}

#[test]
fn a_locked_pin_is_denied_with_advice() {
    on_each("a_locked_pin_is_denied_with_advice", |place| {
        place.user_tool(&["--keygen", "--key-type", "AES:32", "--label", "k", "--id", "01"]);
        let said = (0..MANY).map(|n| {
            place.write_pin("pin", &format!("wrong-{n:04}"));
            let error = place.provider().newest_of("k").unwrap_err();
            assert_eq!(kind(&error), "denied", "{error}");
            error.to_string()
        });
        let locked = said.filter(|said| said.contains("locked") && said.contains("--init-pin"));
        let locked = locked.count();
        place.write_pin("pin", PIN);
        let newest = place.provider().newest_of("k");
        match place.kind {
            // It counts nothing.
            Kind::SoftHsm => assert_eq!((locked, newest.as_deref()), (0, Ok("01"))),
            Kind::Kryoptic => {
                assert!(locked > 0);
                let error = newest.unwrap_err();
                assert_eq!(kind(&error), "denied", "{error}");
            }
        }
    });
}

#[test]
fn tokens_and_modules_that_are_not_there() {
    on_each("tokens_and_modules_that_are_not_there", |place| {
        let at = |module: &std::path::Path, token| Pkcs11::new(module, token, place.pin());
        std::fs::write(place.path("text.so"), "no library").unwrap();
        let label = |label: &str| Token::Label(label.into());
        for (what, provider, want, words) in [
            ("no module", at(&place.path("none.so"), place.token()), "not here", "none.so"),
            ("a text", at(&place.path("text.so"), place.token()), "damaged", "no PKCS#11 module"),
            ("a library", at("libm.so.6".as_ref(), place.token()), "not here", "libm"),
            ("no token", at(&place.module, label("nobody")), "unreachable", "put it in"),
            ("half a label", at(&place.module, label("td")), "unreachable", "put it in"),
            ("no slot", at(&place.module, Token::Slot(987_654_321)), "unreachable", "slot"),
        ] {
            eprintln!("{what}");
            wrap_fails(&provider, "k", want, words);
        }
        // By the number of its slot.
        let slot = place.library().get_slots_with_initialized_token().unwrap()[0];
        let by_slot = at(&place.module, Token::Slot(slot.id()));
        by_slot.create("k").unwrap();
        assert_eq!(by_slot.newest_of("k").unwrap(), "01");
        assert_eq!(place.provider().newest_of("k").unwrap(), "01");
    });
}

#[test]
fn tokens_of_one_label_and_without_a_pin() {
    on_each("tokens_of_one_label_and_without_a_pin", |place| {
        place.init_without_pin(LABEL);
        wrap_fails(&place.provider(), "k", "denied", "2 times");
        let slots = place.library().get_slots_with_initialized_token().unwrap();
        let newest = |slot: &Slot| {
            let provider = Pkcs11::new(&place.module, Token::Slot(slot.id()), place.pin());
            provider.newest_of("k").map_err(|error| (kind(&error), error.to_string()))
        };
        let answers: Vec<_> = slots.iter().map(|slot| newest(slot).unwrap_err()).collect();
        let kinds: Vec<&str> = answers.iter().map(|(kind, _)| *kind).collect();
        assert!(kinds.contains(&"not here") && kinds.contains(&"denied"), "{answers:?}");
        assert!(answers.iter().any(|(_, text)| text.contains("lets nobody log in")), "{answers:?}");
    });
}

#[test]
fn a_token_that_is_taken_away_is_unreachable_until_it_is_back() {
    on_each("a_token_that_is_taken_away_is_unreachable_until_it_is_back", |place| {
        let token =
            std::fs::read_dir(place.path("tokens")).unwrap().next().unwrap().unwrap().path();
        place.init("second");
        let of = |token| Pkcs11::new(&place.module, token, place.pin());
        let slots = place.library().get_slots_with_initialized_token().unwrap();
        let is_first =
            |slot: &&Slot| place.library().get_token_info(**slot).unwrap().label() == LABEL;
        let slot = Token::Slot(slots.iter().find(is_first).unwrap().id());
        let second = of(Token::Label("second".into()));
        let all = [
            of(slot.clone()),
            of(slot).only_user(true),
            of(place.token()).only_user(true),
            of(place.token()),
        ];
        second.create("k").unwrap();
        all[0].create("k").unwrap();
        let dek = Secret::random().unwrap();
        let wrapped = all[0].wrap_key("k", &dek, &CONTEXT).unwrap();
        let unwrap =
            |provider: &Pkcs11| outcome(provider.unwrap_key("k", &wrapped, &CONTEXT), &dek);
        let want = match place.kind {
            Kind::SoftHsm => "unreachable",
            // It holds its file open, so it cannot be taken away.
            Kind::Kryoptic => "ok",
        };
        for here in [place.path("tokens"), token] {
            assert_eq!(all.each_ref().map(unwrap), ["ok"; 4]);
            let away = place.path("away");
            std::fs::rename(&here, &away).unwrap();
            for _ in 0..3 {
                assert_eq!(all.each_ref().map(unwrap), [want; 4], "{}", here.display());
            }
            // One that cannot be read hides no other.
            let alone = here != place.path("tokens");
            assert!(!alone || second.newest_of("k").is_ok());
            std::fs::rename(&away, &here).unwrap();
            // The first one that may finalizes the module; that serves all.
            assert_eq!(unwrap(&all[1]), "ok", "{}", here.display());
        }
        assert_eq!(all.each_ref().map(unwrap), ["ok"; 4]);
        assert_eq!(unwrap(&second), "wrong key");
    });
}

/// As a process meets it that was started meanwhile.
#[test]
fn a_token_that_is_away_at_first_is_found_when_it_is_back() {
    on_each("a_token_that_is_away_at_first_is_found_when_it_is_back", |place| {
        let provider = place.provider().only_user(true);
        let (here, away) = (place.path("tokens"), place.path("away"));
        std::fs::rename(&here, &away).unwrap();
        wrap_fails(&provider, "k", "unreachable", "token");
        let _ = std::fs::remove_dir_all(&here);
        std::fs::rename(&away, &here).unwrap();
        assert_eq!(provider.create("k").unwrap().version, "01");
    });
}

#[test]
fn a_host_that_closes_everything_costs_nothing() {
    on_each("a_host_that_closes_everything_costs_nothing", |place| {
        let provider = place.provider();
        provider.create("k").unwrap();
        let dek = Secret::random().unwrap();
        let wrapped = provider.wrap_key("k", &dek, &CONTEXT).unwrap();
        let works = |what: &str| {
            let answer = provider.unwrap_key("k", &wrapped, &CONTEXT);
            let error = answer.as_ref().err().map(ToString::to_string);
            assert_eq!(outcome(answer, &dek), "ok", "{what}: {error:?}");
        };
        works("at first");
        place.session().logout().unwrap();
        works("the host logged out");
        place.library().finalize().unwrap();
        works("the host finalized the module");
        place.library().finalize().unwrap();
        place.library();
        works("the host finalized and initialised it");
        let (together, only) = (Barrier::new(4), place.provider().only_user(true));
        for round in 0..50 {
            place.library().finalize().unwrap();
            let answers: Vec<_> = std::thread::scope(|scope| {
                let unwrap = |provider: &Pkcs11| {
                    together.wait();
                    provider.unwrap_key("k", &wrapped, &CONTEXT).map(drop)
                };
                let threads =
                    [&provider, &provider, &only, &only].map(|p| scope.spawn(move || unwrap(p)));
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(answers, [const { Ok(()) }; 4], "threads after the end, round {round}");
        }
        assert_eq!(provider.rotate("k").unwrap().version, "02");
        place.library().finalize().unwrap();
        assert_eq!(provider.rotate("k").unwrap().version, "03");
    });
}

#[test]
fn threads_share_a_token() {
    on_each("threads_share_a_token", |place| {
        const THREADS: usize = 4;
        const ROUNDS: usize = 50;
        let provider = place.spied(place.pin());
        place.provider().create("k").unwrap();
        let start = std::time::Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let dek = Secret::random().unwrap();
                        let wrapped = provider.wrap_key("k", &dek, &CONTEXT).unwrap();
                        assert_eq!(
                            outcome(provider.unwrap_key("k", &wrapped, &CONTEXT), &dek),
                            "ok"
                        );
                    }
                });
            }
        });
        report(&format!("{THREADS} threads: {} pairs in {:?}", THREADS * ROUNDS, start.elapsed()));
        place.assert_logins(1);
        let [opened, closed] = ["C_OpenSession", "C_CloseSession"].map(|call| place.calls(call));
        assert!(place.kind == Kind::Kryoptic || opened == closed + 1, "{opened}, {closed}");
        provider.forget();
        assert_eq!(place.calls("C_CloseSession"), opened, "none is left open");
        provider.newest_of("k").unwrap();
        place.assert_logins(2);
        drop(provider);
        assert_eq!(place.calls("C_CloseSession"), place.calls("C_OpenSession"));

        let provider = place.provider();
        let (dek, count) = (Secret::random().unwrap(), 500);
        let mut wrapped = provider.wrap_key("k", &dek, &CONTEXT).unwrap();
        let mut each = |what: &str, job: &mut dyn FnMut(&mut Wrapped)| {
            let start = std::time::Instant::now();
            (0..count).for_each(|_| job(&mut wrapped));
            report(&format!("{what}: {:?} each", start.elapsed() / count));
        };
        each("wrap", &mut |wrapped| *wrapped = provider.wrap_key("k", &dek, &CONTEXT).unwrap());
        each("unwrap", &mut |wrapped| drop(provider.unwrap_key("k", wrapped, &CONTEXT).unwrap()));
    });
}

/// Runs `child` in a forked process; it must return.
#[allow(unsafe_code)]
fn fork(child: impl FnOnce()) {
    // SAFETY: no other thread of this process is at work, so the child finds every lock free.
    match unsafe { libc::fork() } {
        -1 => panic!("fork"),
        0 => {
            let child = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the child without the parent's clean-up.
            unsafe { libc::_exit(i32::from(child.is_err())) }
        }
        id => {
            let mut status = 0;
            // SAFETY: `status` is valid for writing.
            assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
            assert_eq!(status, 0, "the child");
        }
    }
}

fn forked(place: &Place) {
    let provider = place.spied(place.pin());
    place.provider().create("k").unwrap();
    let dek = Secret::random().unwrap();
    let wrapped = provider.wrap_key("k", &dek, &CONTEXT).unwrap();
    let works = |provider: &Pkcs11| {
        assert_eq!(outcome(provider.unwrap_key("k", &wrapped, &CONTEXT), &dek), "ok");
        let again = provider.wrap_key("k", &dek, &CONTEXT).unwrap();
        assert_eq!(outcome(provider.unwrap_key("k", &again, &CONTEXT), &dek), "ok");
    };
    works(&provider);
    let before = place.calls("C_Initialize");
    // Dropped in the child, it must leave its parent's sessions alone.
    let inherited = place.spied(place.pin());
    works(&inherited);
    fork(|| {
        works(&provider);
        fork(|| works(&provider));
        let closed = place.calls("C_CloseSession");
        drop(inherited);
        assert_eq!(place.calls("C_CloseSession"), closed);
        works(&provider);
    });
    works(&provider);
    let since = place.calls("C_Initialize") - before;
    assert!(place.kind == Kind::Kryoptic || since == 2, "{since}: child and grandchild");
}

#[test]
fn a_forked_child_initialises_the_module_again() {
    on_each("a_forked_child_initialises_the_module_again", forked);
}

#[test]
fn a_module_that_resets_itself_in_a_forked_child() {
    on_each("a_module_that_resets_itself_in_a_forked_child", |place| {
        let settings = place.path("softhsm.conf");
        let text = std::fs::read_to_string(&settings).unwrap();
        std::fs::write(settings, text + "library.reset_on_fork = true\n").unwrap();
        forked(place);
    });
}

/// What a process of its own does with the database: `reopen` or `wrong`.
const ROLE: &str = "SQLITE_TDE_TEST_PKCS11_ROLE";

fn open(place: &Place, pin: &str) -> sqlite_tde::Result<rusqlite::Connection> {
    let pin = SecretSource::File(place.path(pin));
    let hsm = Arc::new(Pkcs11::new(&place.module, place.token(), pin));
    let options = Options::new().provider("hsm", hsm).default_protector("hsm:payroll");
    let keystore = Keystore::at(place.path("keys"));
    sqlite_tde::register(options.keystore(keystore).replace(true))?;
    sqlite_tde::open(place.path("app.db"))
}

#[test]
fn a_database_is_protected_by_a_token() {
    const SUM: &str = "SELECT sum(a) FROM t";
    const CODE: i32 = 77;
    on_each("a_database_is_protected_by_a_token", |place| {
        match std::env::var(ROLE).as_deref() {
            Ok("reopen") => {
                let db = open(place, "pin").unwrap();
                db.execute("INSERT INTO t VALUES(5)", []).unwrap();
                return;
            }
            Ok("wrong") => {
                let error = open(place, "wrong").unwrap_err();
                assert!(matches!(error, sqlite_tde::Error::KeyDisabled(_)), "{error:?}");
                assert_eq!(error.sqlite_code() & 0xff, 23, "SQLITE_AUTH");
                eprintln!("{error}");
                std::process::exit(CODE);
            }
            _ => {}
        }
        place.provider().create("payroll").unwrap();
        let db = open(place, "pin").unwrap();
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(2)").unwrap();
        let status = db.tde_status("main").unwrap();
        let status = serde_json::to_value(&status).unwrap();
        let protector = &status["protectors"][0];
        assert_eq!(protector["mechanism"], "aes-gcm", "{status}");
        assert_eq!(protector["key_version"], "01", "{status}");
        drop(db);
        assert!(!place.path("keys").exists(), "the local keystore has no part in it");

        place.write_pin("wrong", "wrong-1234");
        let start = |role: &str| {
            let mut command = place.command(std::env::current_exe().unwrap());
            command.args(only("a_database_is_protected_by_a_token"));
            command.env(ROLE, role).output().unwrap()
        };
        let reopened = start("reopen");
        assert!(reopened.status.success(), "{reopened:?}");
        let refused = start("wrong");
        assert_eq!(refused.status.code(), Some(CODE), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("key disabled: ") && said.contains("not retried"), "{said}");
        assert!(!said.contains("wrong-1234"), "{said}");
        let db = open(place, "pin").unwrap();
        assert_eq!(db.query_row(SUM, [], |row| row.get::<_, i64>(0)).unwrap(), 7);
    });
}
