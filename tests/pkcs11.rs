//! Protector keys on PKCS#11 tokens: SoftHSM2 and kryoptic, each with each test. `scripts/test-pkcs11.sh`
//! brings both; without them every test here fails and says so.

#[path = "pkcs11/place.rs"]
mod place;

use place::*;
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
        let wrapped = provider.wrap("payroll", &dek, &CONTEXT).unwrap();
        assert_eq!((wrapped.mechanism.as_str(), wrapped.key_version.as_str()), ("aes-gcm", "01"));
        assert_eq!(wrapped.blob.len(), 92);
        assert!(!wrapped.blob.windows(32).any(|window| window == dek.expose()));
        let again = provider.wrap("payroll", &dek, &CONTEXT).unwrap();
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
            assert_eq!(outcome(provider.unwrap(key, &wrapped, context), &dek), want, "{what}");
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
            let answer = provider.unwrap(key, &blob, &CONTEXT);
            assert_eq!(outcome(answer, dek), "wrong key", "{what} at {at}");
        }
    }
    assert_eq!(outcome(provider.unwrap(key, wrapped, &CONTEXT), dek), "ok");
}

#[test]
fn old_versions_unwrap_and_the_newest_wraps() {
    on_each("old_versions_unwrap_and_the_newest_wraps", |place| {
        let provider = place.provider();
        // Made by an administrator's tool.
        let make = ["--keygen", "--key-type", "AES:32", "--sensitive", "--label", "k", "--id"];
        place.user_tool(&[&make[..], &["09"]].concat());
        let dek = Secret::random().unwrap();
        let mut wrapped = vec![provider.wrap("k", &dek, &CONTEXT).unwrap()];
        assert_eq!(provider.rotate("k").unwrap().version, "0a");
        wrapped.push(provider.wrap("k", &dek, &CONTEXT).unwrap());
        place.user_tool(&[&make[..], &["0100"]].concat());
        wrapped.push(provider.wrap("k", &dek, &CONTEXT).unwrap());
        let versions: Vec<&str> = wrapped.iter().map(|w| w.key_version.as_str()).collect();
        assert_eq!(versions, ["09", "0a", "0100"]);
        for wrapped in &wrapped {
            assert_eq!(outcome(provider.unwrap("k", wrapped, &CONTEXT), &dek), "ok", "{wrapped:?}");
        }
        assert_eq!(provider.newest_version("k").unwrap(), "0100");
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
        assert!(matches!(error, sqlite_tde::Error::KeyExists(_)), "{error:?}");
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
                let wrapped = key_wrap.wrap("k", &dek, &CONTEXT).unwrap();
                assert_eq!((wrapped.mechanism.as_str(), wrapped.blob.len()), ("aes-key-wrap", 72));
                let context = Context { dek_version: 9, ..CONTEXT };
                for (context, want) in [(&CONTEXT, "ok"), (&context, "wrong key")] {
                    let answer = place.provider().unwrap("k", &wrapped, context);
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
