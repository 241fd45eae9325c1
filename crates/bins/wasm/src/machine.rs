//! One module, from its file to its end.

use crate::limits::Limits;
use crate::wasi::{self, World};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use wasmi::{CompilationMode, Config, Engine, Linker, Module, Store};

/// A program of this size takes several times as much when it runs, which no device that needs an interpreter has.
const MODULE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What a recursion may take, as much as a thread has elsewhere.
const STACK_BYTES_MAX: usize = 8 * 1024 * 1024;
const CALLS_MAX: usize = 64 * 1024;

/// What every binary of WebAssembly begins with, and what follows in a module and in a component.
const MAGIC: [u8; 4] = *b"\0asm";
const MODULE: [u8; 4] = [1, 0, 0, 0];
const COMPONENT: [u8; 4] = [0x0d, 0, 1, 0];

/// Where a program of WASI begins.
const START: &str = "_start";

const MIB: usize = 1024 * 1024;

/// The exit code of a module that ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended(pub(crate) u8);

impl Ended {
    /// As a shell tells of a program that was aborted.
    pub(crate) const TRAPPED: u8 = 134;
    /// As a shell tells of a file that cannot be executed.
    pub(crate) const NOT_BEGUN: u8 = 126;
}

/// Why a module did not begin, or how it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("it cannot be read")]
    Read(#[source] std::io::Error),
    #[error("it is larger than {} MiB", MODULE_BYTES_MAX >> 20)]
    TooLarge,
    #[error("it is no WebAssembly module")]
    NoModule,
    #[error("it is a WebAssembly component; only modules with the interface of WASI preview 1 are run")]
    Component,
    #[error("it is not valid")]
    Invalid(#[source] wasmi::Error),
    #[error("it cannot be linked")]
    Unlinkable(#[source] wasmi::Error),
    #[error("it exports no function {START}, so it is a library and no program")]
    NoStart,
    #[error("it begins with {} MiB of memory, and its container may have {} MiB", wanted / MIB, granted / MIB)]
    TooMuchMemory { wanted: usize, granted: usize },
    #[error("trap")]
    Trap(#[source] wasmi::Error),
    #[error(transparent)]
    World(#[from] wasi::Error),
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Trap(_) => Ended::TRAPPED,
            Self::Read(_)
            | Self::TooLarge
            | Self::NoModule
            | Self::Component
            | Self::Invalid(_)
            | Self::Unlinkable(_)
            | Self::NoStart
            | Self::TooMuchMemory { .. }
            | Self::World(_) => Ended::NOT_BEGUN,
        }
    }
}

/// Runs the module in a file to its end.
pub(crate) fn run(file: &Path, world: World) -> Result<Ended, Error> {
    let module = read(file)?;
    let engine = Engine::new(&config());
    let module = Module::new(&engine, module).map_err(Error::Invalid)?;
    let mut linker = Linker::new(&engine);
    wasi::link(&mut linker).map_err(|error| Error::Unlinkable(error.into()))?;
    let mut store = Store::new(&engine, world);
    store.limiter(|world: &mut World| &mut world.limits);
    let ended = start(&linker, &mut store, &module);
    ended.or_else(|error| told(error, &store.data().limits))
}

fn start(linker: &Linker<World>, store: &mut Store<World>, module: &Module) -> Result<Ended, Error> {
    if module.get_export(START).is_none() {
        return Err(Error::NoStart);
    }
    let instance = linker
        .instantiate_and_start(&mut *store, module)
        .map_err(Error::Unlinkable)?;
    let start = instance
        .get_typed_func::<(), ()>(&*store, START)
        .map_err(Error::Unlinkable)?;
    start.call(store, ()).map_err(Error::Trap)?;
    Ok(Ended(0))
}

/// What an error of the interpreter means: an exit is none, and its words for memory tell no numbers.
fn told(error: Error, limits: &Limits) -> Result<Ended, Error> {
    let (Error::Unlinkable(cause) | Error::Trap(cause)) = &error else {
        return Err(error);
    };
    if let Some(code) = cause.i32_exit_status() {
        // As the kernel tells it: the lowest eight bits.
        let [lowest, ..] = code.to_le_bytes();
        return Ok(Ended(lowest));
    }
    match error {
        Error::Unlinkable(cause) if cause.as_trap_code().is_some() => Err(Error::Trap(cause)),
        Error::Unlinkable(cause) => Err(match limits.refusal() {
            Some((wanted, granted)) => Error::TooMuchMemory { wanted, granted },
            None => Error::Unlinkable(cause),
        }),
        other => Err(other),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(Error::Read)?;
    opened
        .take(MODULE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::Read)?;
    if bytes.len() as u64 > MODULE_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    match bytes.strip_prefix(&MAGIC) {
        Some(rest) if rest.starts_with(&MODULE) => Ok(bytes),
        Some(rest) if rest.starts_with(&COMPONENT) => Err(Error::Component),
        _ => Err(Error::NoModule),
    }
}

/// What compilers make by default. Everything else is refused: what is not there has no faults.
fn config() -> Config {
    let mut config = Config::default();
    config
        .set_max_stack_height(STACK_BYTES_MAX)
        .set_max_recursion_depth(CALLS_MAX)
        // All is checked before anything runs; what never runs is never translated.
        .compilation_mode(CompilationMode::LazyTranslation)
        .ignore_custom_sections(true)
        .wasm_multi_memory(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false);
    config
}
