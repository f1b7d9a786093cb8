//! Each kind of provider in the registry against the reference, docs/config.md.

use super::file::parse_in;
use crate::error::Error;
use crate::provider::registry::KINDS;

const REFERENCE: &str = include_str!("../../docs/config.md");

/// The documented tables of a kind, each from its header to the line before the next table.
fn tables(kind: &str) -> Vec<String> {
    let blocks = REFERENCE.split("```toml\n").skip(1).filter_map(|block| block.split("```").next());
    blocks
        .flat_map(|block| block.split("\n[").skip(usize::from(!block.starts_with('['))))
        .filter(|table| table.contains(&format!("\ntype = \"{kind}\"\n")))
        .map(|table| format!("[{}\n", table.trim_start_matches('[').trim_end()))
        .collect()
}

#[test]
fn each_kind_is_documented_and_refuses_an_unknown_field() {
    for (kind, read) in KINDS {
        let tables = tables(kind);
        assert!(!tables.is_empty(), "docs/config.md has no table with type = \"{kind}\"");
        for table in tables {
            // The first line is empty, and the second one the header.
            let text = format!("\n{table}hunter2 = 1\n");
            let line = text.lines().count();
            let expected = match read {
                Ok(_) => format!(", line {line}, providers."),
                Err(missing) => missing.to_string(),
            };
            match parse_in(&text, "dir".as_ref()) {
                Err(Error::Config(said)) => {
                    let said = said.to_string();
                    assert!(said.contains(&expected), "{said}: expected {expected}");
                    let field = ".hunter2: there is no such field here; known are type, ";
                    assert!(read.is_err() || said.contains(field), "{said}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}

/// A field that is only in the code, or only in the reference, is a mistake of one of them.
#[test]
fn each_field_of_a_kind_is_documented() {
    for (kind, _) in KINDS.iter().filter(|(_, read)| read.is_ok()) {
        let tables = tables(kind);
        let text = format!("\n{}hunter2 = 1\n", tables[0]);
        let Err(Error::Config(said)) = parse_in(&text, "dir".as_ref()) else { panic!("{text}") };
        let said = said.to_string();
        let (_, known) = said.split_once("known are ").unwrap();
        for field in known.split(", ") {
            let documented = tables.iter().flat_map(|table| table.lines()).any(|line| {
                let line = line.trim_start_matches(['#', '=', ' ']);
                line.strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with('='))
            });
            assert!(documented, "docs/config.md does not have {field} of type = \"{kind}\"");
        }
    }
}
