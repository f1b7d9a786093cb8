//! Protector keys on PKCS#11 tokens: SoftHSM2 and kryoptic, each with each test.
//! `scripts/test-pkcs11.sh` brings both; without them every test here fails and says so.

#[path = "pkcs11/place.rs"]
mod place;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use place::*;
use sqlite_tde::provider::conformance::Direct;
use sqlite_tde::provider::conformance::{Conformance, Outcome, assert_conforms};
use sqlite_tde::provider::{Context, KeyProvider, Mechanism, Wrapped};
use sqlite_tde::secret::Secret;

#[test]
fn a_blob_opens_only_where_it_belongs() {
    on_each("a_blob_opens_only_where_it_belongs", |place| {
        let provider = place.provider();
        let made = provider.create("payroll").unwrap();
        assert_eq!((made.version.as_str(), made.wraps, made.extractable), ("01", true, false));
        provider.create("other").unwrap();
        let dek = Secret::random().unwrap();
        let wrapped = provider.wrap_key("payroll", &dek, &CONTEXT).unwrap();
        assert_eq!((wrapped.mechanism.as_str(), wrapped.key_version.as_str()), ("aes-gcm", "01"));
        assert_eq!(wrapped.blob.len(), 92);
        assert!(!wrapped.blob.windows(32).any(|window| window == dek.expose()));
        let again = provider.wrap_key("payroll", &dek, &CONTEXT).unwrap();
        assert_ne!(wrapped.blob[..60], again.blob[..60], "a nonce comes twice");

        let with = |change: &dyn Fn(&mut Wrapped)| {
            let mut wrapped = wrapped.clone();
            change(&mut wrapped);
            wrapped
        };
        let named = |name: &str| with(&|wrapped| wrapped.mechanism = name.into());
        let version = |name: &str| with(&|wrapped| wrapped.key_version = name.into());
        let other_file = Context { file_id: [8; 16], ..CONTEXT };
        let other_dek = Context { dek_version: 2, ..CONTEXT };
        for (what, key, wrapped, context, want) in [
            ("the same", "payroll", wrapped.clone(), &CONTEXT, "ok"),
            ("another database", "payroll", wrapped.clone(), &other_file, "wrong key"),
            ("another DEK version", "payroll", wrapped.clone(), &other_dek, "wrong key"),
            ("another key", "other", wrapped.clone(), &CONTEXT, "wrong key"),
            ("no key", "nobody", wrapped.clone(), &CONTEXT, "not here"),
            ("a version that is not", "payroll", version("02"), &CONTEXT, "not here"),
            ("the version as another text", "payroll", version("1"), &CONTEXT, "not here"),
            ("key wrap", "payroll", named("aes-key-wrap"), &CONTEXT, "key wrap"),
            ("RSA", "payroll", named("rsa-oaep-sha256"), &CONTEXT, "not here"),
            ("an unknown mechanism", "payroll", named("aes-cbc"), &CONTEXT, "damaged"),
            ("no mechanism", "payroll", named(""), &CONTEXT, "damaged"),
            ("no blob", "payroll", with(&|w| w.blob.clear()), &CONTEXT, "wrong key"),
            ("a byte more", "payroll", with(&|w| w.blob.push(0)), &CONTEXT, "wrong key"),
        ] {
            // SoftHSM2 has this mechanism only for C_WrapKey.
            let want = match (want, place.kind) {
                ("key wrap", Kind::SoftHsm) => "denied",
                ("key wrap", Kind::Kryoptic) => "wrong key",
                _ => want,
            };
            assert_eq!(outcome(provider.unwrap_key(key, &wrapped, context), &dek), want, "{what}");
        }
        altered(&provider, "payroll", &wrapped, &dek);
    });
}

/// Each byte changed, and each length.
fn altered(provider: &dyn KeyProvider, key: &str, wrapped: &Wrapped, dek: &Secret) {
    for at in 0..wrapped.blob.len() {
        let mut flipped = wrapped.clone();
        flipped.blob[at] ^= 1 << (at % 8);
        let mut cut = wrapped.clone();
        cut.blob.truncate(at);
        for (what, blob) in [("changed", flipped), ("cut", cut)] {
            let answer = provider.unwrap_key(key, &blob, &CONTEXT);
            assert_eq!(outcome(answer, dek), "wrong key", "{what} at {at}");
        }
    }
    assert_eq!(outcome(provider.unwrap_key(key, wrapped, &CONTEXT), dek), "ok");
}

#[test]
fn old_versions_unwrap_and_the_newest_wraps() {
    on_each("old_versions_unwrap_and_the_newest_wraps", |place| {
        let provider = place.provider();
        // Made by an administrator's tool.
        let make = ["--keygen", "--key-type", "AES:32", "--sensitive", "--label", "k", "--id"];
        place.user_tool(&[&make[..], &["09"]].concat());
        let dek = Secret::random().unwrap();
        let mut wrapped = vec![provider.wrap_key("k", &dek, &CONTEXT).unwrap()];
        assert_eq!(provider.rotate("k").unwrap().version, "0a");
        wrapped.push(provider.wrap_key("k", &dek, &CONTEXT).unwrap());
        place.user_tool(&[&make[..], &["0100"]].concat());
        wrapped.push(provider.wrap_key("k", &dek, &CONTEXT).unwrap());
        let versions: Vec<&str> = wrapped.iter().map(|w| w.key_version.as_str()).collect();
        assert_eq!(versions, ["09", "0a", "0100"]);
        for wrapped in &wrapped {
            assert_eq!(
                outcome(provider.unwrap_key("k", wrapped, &CONTEXT), &dek),
                "ok",
                "{wrapped:?}"
            );
        }
        assert_eq!(provider.newest_of("k").unwrap(), "0100");
        assert_eq!(provider.rotate("k").unwrap().version, "0101");

        let list = provider.list().unwrap();
        let listed: Vec<(&str, &str)> =
            list.iter().map(|key| (key.label.as_str(), key.version.as_str())).collect();
        assert_eq!(listed, [("k", "09"), ("k", "0a"), ("k", "0100"), ("k", "0101")]);
        assert!(list.iter().all(|key| key.algorithm == "aes-256" && key.wraps && key.unwraps));
        let seen = place.user_tool(&["--list-objects", "--type", "secrkey"]);
        for version in ["09", "0a", "0100", "0101"] {
            assert!(seen.contains(&format!("ID:         {version}")), "{version}: {seen}");
        }
        assert_eq!(seen.matches("label:      k").count(), 4, "{seen}");
        let error = provider.create("k").unwrap_err();
        assert!(matches!(error, sqlite_tde::Error::KeyExists { .. }), "{error:?}");
        let error = provider.rotate("nobody").unwrap_err();
        assert!(matches!(error, sqlite_tde::Error::NoKey(_)), "{error:?}");
        assert_eq!(provider.list().unwrap().len(), 4);
    });
}

#[test]
fn mechanisms_are_those_that_the_token_has() {
    on_each("mechanisms_are_those_that_the_token_has", |place| {
        place.provider().create("k").unwrap();
        let dek = Secret::random().unwrap();
        let key_wrap = place.provider().mechanisms(&[Mechanism::AesKeyWrap]);
        match place.kind {
            Kind::SoftHsm => wrap_fails(&key_wrap, "k", "denied", "none of the mechanisms"),
            Kind::Kryoptic => {
                let wrapped = key_wrap.wrap_key("k", &dek, &CONTEXT).unwrap();
                assert_eq!((wrapped.mechanism.as_str(), wrapped.blob.len()), ("aes-key-wrap", 72));
                let context = Context { dek_version: 9, ..CONTEXT };
                for (context, want) in [(&CONTEXT, "ok"), (&context, "wrong key")] {
                    let answer = place.provider().unwrap_key("k", &wrapped, context);
                    assert_eq!(outcome(answer, &dek), want);
                }
                altered(&key_wrap, "k", &wrapped, &dek);
            }
        }
        for none in [&[][..], &[Mechanism::RsaOaepSha256]] {
            let provider = place.provider().mechanisms(none);
            wrap_fails(&provider, "k", "denied", "none of the mechanisms");
        }
    });
}

#[test]
fn keys_that_do_not_serve() {
    on_each("keys_that_do_not_serve", |place| {
        let provider = place.provider();
        let dek = Secret::random().unwrap();
        let unwrap = |wrapped: &Wrapped| outcome(provider.unwrap_key("k", wrapped, &CONTEXT), &dek);
        wrap_fails(&provider, "k", "not here", "create it");
        provider.create("k").unwrap();
        let first = provider.wrap_key("k", &dek, &CONTEXT).unwrap();
        provider.rotate("k").unwrap();
        let second = provider.wrap_key("k", &dek, &CONTEXT).unwrap();
        assert_eq!([&first, &second].map(unwrap), ["ok", "ok"]);

        // Disabled for encryption, then altogether, then as it was.
        let admin = place.session();
        let found = |id: u8| {
            let template = [Attribute::Label(b"k".to_vec()), Attribute::Id(vec![id])];
            admin.find_objects(&template).unwrap()[0]
        };
        let set = |id, encrypt, decrypt| {
            let template = [Attribute::Encrypt(encrypt), Attribute::Decrypt(decrypt)];
            admin.update_attributes(found(id), &template).unwrap();
        };
        set(2, false, true);
        assert_eq!(provider.newest_of("k").unwrap(), "01");
        assert_eq!(provider.wrap_key("k", &dek, &CONTEXT).unwrap().key_version, "01");
        assert_eq!([&first, &second].map(unwrap), ["ok", "ok"]);
        set(2, true, false);
        assert_eq!(provider.newest_of("k").unwrap(), "01", "it could not unwrap again");
        assert_eq!([&first, &second].map(unwrap), ["ok", "denied"]);
        set(1, false, true);
        wrap_fails(&provider, "k", "denied", "both encrypt and decrypt");
        let usable: Vec<_> =
            provider.list().unwrap().iter().map(|key| (key.wraps, key.unwraps)).collect();
        assert_eq!(usable, [(false, true), (false, false)]);
        set(1, true, true);
        set(2, true, true);
        assert_eq!([&first, &second].map(unwrap), ["ok", "ok"]);

        // Destroyed, put back with other bytes, and there twice.
        admin.destroy_object(found(1)).unwrap();
        assert_eq!([&first, &second].map(unwrap), ["not here", "ok"]);
        let import = |id: u8, length: usize| {
            let object = [
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::AES),
                Attribute::Token(true),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::Label(b"k".to_vec()),
                Attribute::Id(vec![id]),
                Attribute::Value(vec![9; length]),
            ];
            admin.create_object(&object).unwrap();
        };
        import(1, 16);
        assert_eq!(unwrap(&first), "not here", "AES-128");
        import(1, 32);
        assert_eq!([&first, &second].map(unwrap), ["wrong key", "ok"]);
        import(2, 32);
        wrap_fails(&provider, "k", "damaged", "more than once");
        assert_eq!(unwrap(&second), "damaged");
    });
}

#[test]
fn tokens_conform() {
    on_each("tokens_conform", |place| {
        let (here, away) = (place.path("tokens"), place.path("away"));
        for mechanism in [Mechanism::AesGcm, Mechanism::AesKeyWrap] {
            if (place.kind, mechanism) == (Kind::SoftHsm, Mechanism::AesKeyWrap) {
                continue; // it has none
            }
            let (key, other) = (mechanism.name(), format!("{} 2", mechanism.name()));
            let provider = place.provider().mechanisms(&[mechanism]).only_user(true);
            provider.create(key).unwrap();
            provider.create(&other).unwrap();
            let enable = |enabled| {
                let admin = place.session();
                let template = [Attribute::Label(key.as_bytes().to_vec())];
                for version in admin.find_objects(&template).unwrap() {
                    let uses = [Attribute::Encrypt(enabled), Attribute::Decrypt(enabled)];
                    admin.update_attributes(version, &uses).unwrap();
                }
            };
            let mut suite = Conformance::of(&provider, key)
                .missing_key("nobody")
                .other_key(&other)
                .secret(PIN.as_bytes())
                .rotate(|| drop(provider.rotate(key).unwrap()))
                .switch(|| enable(false), || enable(true));
            if mechanism == Mechanism::AesKeyWrap {
                suite = suite.deterministic();
            }
            if place.kind == Kind::SoftHsm {
                let cut = || std::fs::rename(&here, &away).unwrap();
                suite = suite.outage(cut, || std::fs::rename(&away, &here).unwrap());
            }
            let report = assert_conforms(suite);
            let not_run = report.checks.iter().filter(|c| matches!(c.outcome, Outcome::NotRun(_)));
            let not_run: Vec<&str> = not_run.map(|check| check.name).collect();
            let blobs = "wraps the same key to different blobs";
            // It holds its file open, so it cannot be taken away.
            let outage = "says that it is unreachable, and serves when it is back";
            let want: &[&str] = match (place.kind, mechanism) {
                (Kind::SoftHsm, _) => &[],
                (Kind::Kryoptic, Mechanism::AesKeyWrap) => &[blobs, outage],
                (Kind::Kryoptic, _) => &[outage],
            };
            assert_eq!(not_run, want, "\n{report}");
        }
    });
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The check at the end of a blob, as docs/pkcs11.md has it, computed by OpenSSL.
fn check(place: &Place, dek: &[u8], mechanism: &str, key: &str, sealed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let context = CONTEXT.encode();
    for part in [mechanism.as_bytes(), key.as_bytes(), b"01", &context, sealed] {
        bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    std::fs::write(place.path("bound"), bytes).unwrap();
    let openssl = |line: &str| {
        succeed(place.command("openssl").args(line.split(' ')))
            .trim()
            .replace(':', "")
            .to_lowercase()
    };
    let info = hex(b"sqlite-tde v1 pkcs11 check");
    let subkey = openssl(&format!(
        "kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:{} -kdfopt hexsalt:{} \
         -kdfopt hexinfo:{info} HKDF",
        hex(dek),
        hex(&CONTEXT.file_id)
    ));
    let bound = place.path("bound");
    let mac = openssl(&format!(
        "mac -digest SHA256 -macopt hexkey:{subkey} -in {} HMAC",
        bound.display()
    ));
    (0..32).map(|at| u8::from_str_radix(&mac[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// A key that both the token and the other implementation have: what one seals, the other opens.
#[test]
fn other_implementations_read_and_write_the_same() {
    on_each("other_implementations_read_and_write_the_same", |place| {
        let (kek, dek) = (Secret::random().unwrap(), Secret::random().unwrap());
        std::fs::write(place.path("kek"), kek.expose()).unwrap();
        std::fs::write(place.path("dek"), dek.expose()).unwrap();
        let file = place.path("kek").display().to_string();
        let object = ["--type", "secrkey", "--key-type", "AES:32", "--label", "k", "--id", "01"];
        place.user_tool(&[&["--write-object", &file], &object[..]].concat());
        let provider = place.provider();
        let theirs = |mechanism: &str, sealed: Vec<u8>| {
            let check = check(place, dek.expose(), mechanism, "k", &sealed);
            let blob = [sealed, check].concat();
            let wrapped = Wrapped::new("01", mechanism, blob);
            outcome(provider.unwrap_key("k", &wrapped, &CONTEXT), &dek)
        };

        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, kek.expose()).unwrap());
        let nonce = |bytes: &[u8]| Nonce::try_assume_unique_for_key(bytes).unwrap();
        let wrapped = provider.wrap_key("k", &dek, &CONTEXT).unwrap();
        let (sealed, tail) = wrapped.blob.split_at(60);
        let mut opened = sealed[12..].to_vec();
        key.open_in_place(nonce(&sealed[..12]), Aad::from(CONTEXT.encode()), &mut opened).unwrap();
        assert_eq!(opened[..32], dek.expose()[..]);
        assert_eq!(tail, check(place, dek.expose(), "aes-gcm", "k", sealed));
        let mut sealed = dek.expose().to_vec();
        let aad = Aad::from(CONTEXT.encode());
        key.seal_in_place_append_tag(nonce(&[3; 12]), aad, &mut sealed).unwrap();
        assert_eq!(theirs("aes-gcm", [&[3; 12], &sealed[..]].concat()), "ok");

        if place.kind == Kind::Kryoptic {
            let mut openssl = place.command("openssl");
            openssl.args(["enc", "-id-aes256-wrap", "-iv", "a6a6a6a6a6a6a6a6", "-K"]);
            openssl.arg(hex(kek.expose())).arg("-in").arg(place.path("dek"));
            succeed(openssl.arg("-out").arg(place.path("sealed")));
            let sealed = std::fs::read(place.path("sealed")).unwrap();
            assert_eq!(theirs("aes-key-wrap", sealed.clone()), "ok");
            let ours = place.provider().mechanisms(&[Mechanism::AesKeyWrap]);
            assert_eq!(ours.wrap_key("k", &dek, &CONTEXT).unwrap().blob[..40], sealed);
        }
    });
}

#[test]
fn rsa_key_pairs() {
    on_each("rsa_key_pairs", |place| {
        for (size, id) in [("2048", "01"), ("1024", "02")] {
            let kind = format!("rsa:{size}");
            let pair = ["--keypairgen", "--key-type", &kind, "--label", "pair", "--id", id];
            if place.kind == Kind::SoftHsm || size != "1024" {
                place.user_tool(&[&pair[..], &["--usage-decrypt"]].concat());
            }
        }
        let dek = Secret::random().unwrap();
        let provider = place.provider();
        let sha1 = place.provider().mechanisms(&[Mechanism::RsaOaepSha256, Mechanism::RsaOaepSha1]);
        assert_eq!(sha1.newest_of("pair").unwrap(), "01", "1024 bits do not count");
        let wrapped = sha1.wrap_key("pair", &dek, &CONTEXT).unwrap();
        let want = match place.kind {
            // It has no other, which is not taken unless it is allowed.
            Kind::SoftHsm => {
                wrap_fails(&provider, "pair", "denied", "rsa-oaep-sha256: C_EncryptInit");
                "rsa-oaep-sha1"
            }
            Kind::Kryoptic => "rsa-oaep-sha256",
        };
        assert_eq!((wrapped.mechanism.as_str(), wrapped.blob.len()), (want, 256 + 32));
        let other = Context { dek_version: 2, ..CONTEXT };
        assert_eq!(outcome(provider.unwrap_key("pair", &wrapped, &other), &dek), "wrong key");
        altered(&provider, "pair", &wrapped, &dek);

        // What OpenSSL encrypts with the exported public key.
        let public = place.path("public").display().to_string();
        let read = ["--read-object", "--type", "pubkey", "--label", "pair", "--id", "01"];
        place.user_tool(&[&read[..], &["--output-file", &public]].concat());
        std::fs::write(place.path("dek"), dek.expose()).unwrap();
        let digest = if place.kind == Kind::SoftHsm { "sha1" } else { "sha256" };
        let line = format!(
            "pkeyutl -encrypt -pubin -keyform DER -inkey {public} -in {dir}/dek -out {dir}/sealed \
             -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:{digest} \
             -pkeyopt rsa_mgf1_md:{digest}",
            dir = place.dir.display()
        );
        succeed(place.command("openssl").args(line.split(' ')));
        let sealed = std::fs::read(place.path("sealed")).unwrap();
        let check = check(place, dek.expose(), want, "pair", &sealed);
        let mut theirs = wrapped.clone();
        theirs.blob = [sealed, check].concat();
        assert_eq!(outcome(provider.unwrap_key("pair", &theirs, &CONTEXT), &dek), "ok");

        // The public key alone cannot unwrap, and the private one alone cannot wrap.
        let admin = place.session();
        let find = |class| {
            let template = [Attribute::Class(class), Attribute::Label(b"pair".to_vec())];
            admin.find_objects(&template).unwrap()
        };
        for public in find(ObjectClass::PUBLIC_KEY) {
            admin.destroy_object(public).unwrap();
        }
        wrap_fails(&sha1, "pair", "denied", "public key");
        assert_eq!(outcome(provider.unwrap_key("pair", &wrapped, &CONTEXT), &dek), "ok");
        let mut flipped = wrapped.clone();
        flipped.blob[100] ^= 1;
        let answer = provider.unwrap_key("pair", &flipped, &CONTEXT);
        assert_eq!(
            outcome(answer, &dek),
            "unreachable",
            "nothing to prove with that the token is well"
        );
        // Nor can it with another's public key beside it.
        let pair = ["--keypairgen", "--key-type", "rsa:2048", "--label", "stray", "--id", "01"];
        place.user_tool(&pair);
        let stray =
            [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Label(b"stray".to_vec())];
        let stray = admin.find_objects(&stray).unwrap()[0];
        admin.update_attributes(stray, &[Attribute::Label(b"pair".to_vec())]).unwrap();
        let error = sha1.wrap_key("pair", &dek, &CONTEXT).unwrap_err();
        assert_eq!(kind(&error), "unreachable");
        for private in find(ObjectClass::PRIVATE_KEY) {
            admin.destroy_object(private).unwrap();
        }
        assert_eq!(outcome(provider.unwrap_key("pair", &wrapped, &CONTEXT), &dek), "not here");
    });
}
