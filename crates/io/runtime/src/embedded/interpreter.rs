//! The program that interprets WebAssembly modules, where this library was built with the feature `wasm`.

use super::carried::Carried;
use crate::Error;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The handler of pods whose containers are modules.
pub(super) const HANDLER: &str = "wasm";

#[cfg(feature = "wasm")]
const PROGRAM: Option<Carried> = Some(Carried {
    name: "the interpreter of WebAssembly modules",
    packed: include_bytes!(concat!(env!("OUT_DIR"), "/kedge-wasm.gz")),
    file_prefix: "interpreter-",
    // It is executed by whoever the container's process is.
    file_mode: 0o555,
});
#[cfg(not(feature = "wasm"))]
const PROGRAM: Option<Carried> = None;

/// Why there are no modules without it.
pub(super) const MISSING: &str = "this kedge was built without the feature wasm, so it runs no WebAssembly modules; build it with \
     cargo build --features wasm";

pub(super) fn is_carried() -> bool {
    PROGRAM.is_some()
}

/// Where the program is, once somebody needed it: most nodes run no modules.
#[derive(Debug, Default)]
pub(super) struct Interpreter(Mutex<Option<PathBuf>>);

impl Interpreter {
    /// The program's file below the runtime's root.
    pub(super) fn program(&self, root: &Path) -> Result<PathBuf, Error> {
        // What is in it is whole, whoever panicked.
        let mut written = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(path) = &*written {
            return Ok(path.clone());
        }
        let program = PROGRAM.ok_or_else(|| Error::failed("interpret", "a module", MISSING))?;
        Ok(written.insert(program.write(root)?).clone())
    }
}
