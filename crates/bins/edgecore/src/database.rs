//! `edgecore database`: what an operator does with the metadata while EdgeCore rests.

use anyhow::Result;
use clap::Subcommand;
use kedge_store::meta::{self, Error, Settings};

/// What is done with the metadata. EdgeCore must not run meanwhile.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum DatabaseAct {
    /// Take over what an official EdgeCore left in database.dataSource, in place of what is held
    Import,
    /// Write what is held into database.dataSource, secrets in clear, for an official EdgeCore
    Export,
    /// Seal secrets and tokens with a new key
    RotateKey,
}

/// Does it, and returns what to tell about it.
pub(crate) fn run(act: DatabaseAct, settings: &Settings) -> Result<String> {
    Ok(match act {
        DatabaseAct::Import => {
            if !settings.data_source.exists() {
                let path = settings.data_source.clone();
                return Err(Error::Absent { path }.into());
            }
            meta::import(settings)?.to_string()
        }
        DatabaseAct::Export => meta::export(settings)?.to_string(),
        DatabaseAct::RotateKey => {
            let count = meta::rotate_key(settings)?;
            let what = match count {
                1 => "1 secret or token is",
                _ => &format!("{count} secrets and tokens are"),
            };
            format!(
                "{what} sealed with a new key in {}; the old one is forgotten",
                settings.key_file.display()
            )
        }
    })
}
