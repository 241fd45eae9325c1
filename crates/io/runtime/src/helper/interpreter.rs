//! Executing a container's WebAssembly module: the first process becomes the interpreter, which is given the module's
//! name as the container's command names it.
//!
//! The interpreter is opened before the container is made and executed by its descriptor, so nothing of it appears among
//! the container's files. It lies on a read-only mount of its own: nobody in the container can change it through
//! `/proc`.

use super::Failure;
use crate::embedded::read_only;
use libcontainer::oci_spec::runtime::Spec;
use nix::fcntl::AtFlags;
use nix::unistd::execveat;
use rustix::fs::{Access, CWD, accessat};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

/// What the interpreter is called among the processes.
const NAME: &str = "kedge-wasm";

/// The interpreter, held open.
#[derive(Debug, Clone)]
pub(super) struct Interpreter(Arc<OwnedFd>);

impl Interpreter {
    /// Opens it; while this process still has the node's own mounts.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let opened = read_only(path).map_err(|error| Failure::new("open the interpreter", error))?;
        Ok(Self(Arc::new(opened)))
    }

    /// Says why there is nothing to interpret; to be asked in the container, by its first process.
    pub(super) fn check(spec: &Spec) -> Result<(), String> {
        let module = arguments(spec).first().ok_or("there is no command")?;
        match accessat(CWD, module, Access::READ_OK, rustix::fs::AtFlags::EACCESS) {
            Ok(()) if Path::new(module).is_file() => Ok(()),
            Ok(()) => Err(format!("module {module} cannot be interpreted: it is no file")),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(format!("module {module} is not in the container")),
            Err(errno) => Err(format!("module {module} cannot be interpreted: {errno}")),
        }
    }

    /// Becomes the interpreter; returns why it did not.
    pub(super) fn execute(&self, spec: &Spec) -> String {
        let own = [NAME.to_owned()];
        let arguments = own
            .iter()
            .chain(arguments(spec))
            .map(|word| CString::new(word.as_str()));
        let variables = std::env::vars_os()
            .map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'='))
            .map(CString::new);
        let (Ok(arguments), Ok(variables)) = (
            arguments.collect::<Result<Vec<CString>, _>>(),
            variables.collect::<Result<Vec<CString>, _>>(),
        ) else {
            return "arguments and variables are text without zeros".to_owned();
        };
        match execveat(&*self.0, c"", &arguments, &variables, AtFlags::AT_EMPTY_PATH) {
            Ok(never) => match never {},
            Err(errno) => format!("the interpreter of modules cannot be executed: {errno}"),
        }
    }
}

fn arguments(spec: &Spec) -> &[String] {
    let process = spec.process().as_ref();
    let arguments = process.and_then(|process| process.args().as_ref());
    arguments.map_or(&[], Vec::as_slice)
}
