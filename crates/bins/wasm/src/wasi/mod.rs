//! The system interface of WASI preview 1, over the files, clocks and sockets that this process has.
//!
//! Every call gives a number of [`Errno`], and writes its results into the module's memory, of which every access is
//! checked. What is not there answers `nosys`.

mod clocks;
mod descriptors;
mod errno;
mod files;
mod guest;
mod paths;
mod poll;
mod process;
mod sockets;
mod status;

use crate::limits::Limits;
use descriptors::Table;
use errno::Errno;
use guest::{Guest, Range};
use wasmi::errors::LinkerError;
use wasmi::{Caller, Extern, Linker};

pub(crate) use sockets::LISTEN;

const MODULE: &str = "wasi_snapshot_preview1";
/// Under this name toolchains export a module's memory.
const MEMORY: &str = "memory";

/// Why a module has no world to live in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("open {0}")]
    Open(&'static str, #[source] std::io::Error),
    #[error("{LISTEN}={0}: at most {max} addresses with ports, with commas between them", max = sockets::LISTENERS_MAX)]
    BadAddresses(String),
    #[error("listen at {0}")]
    Listen(String, #[source] std::io::Error),
}

/// What one module has of the outside.
#[derive(Debug)]
pub(crate) struct World {
    arguments: Vec<Vec<u8>>,
    environment: Vec<Vec<u8>>,
    table: Table,
    pub(crate) limits: Limits,
}

impl World {
    /// What this process has itself; the first argument is the module's name.
    pub(crate) fn new(arguments: Vec<Vec<u8>>) -> Result<Self, Error> {
        let listeners = sockets::listeners(std::env::var(LISTEN).ok().as_deref())?;
        Ok(Self {
            arguments,
            environment: process::environment(),
            table: Table::new(listeners)?,
            limits: Limits::default(),
        })
    }
}

/// Does a call with the module's memory at hand.
fn call(
    mut caller: Caller<'_, World>,
    act: impl FnOnce(&mut World, &mut Guest<'_>) -> Result<(), Errno>,
) -> Result<u32, wasmi::Error> {
    let memory = caller.get_export(MEMORY).and_then(Extern::into_memory);
    let memory = memory.ok_or_else(|| {
        wasmi::Error::new("a call of the system interface by a module that exports no memory")
    })?;
    let (bytes, world) = memory.data_and_store_mut(&mut caller);
    Ok(act(world, &mut Guest::new(bytes)).map_or_else(Errno::number, |()| 0))
}

/// One line a call: its name, its arguments as the module passes them, what is done.
macro_rules! calls {
    ($linker:ident, |$world:ident, $guest:ident| $($name:literal ($($argument:ident: $kind:ty),*) => $act:expr;)*) => {
        $($linker.func_wrap(MODULE, $name, |caller: Caller<'_, World>, $($argument: $kind),*| {
            call(caller, |$world, $guest| {
                // Not every call touches both.
                let _ = (&$world, &$guest);
                $act
            })
        })?;)*
    };
}

fn range(at: u32, length: u32) -> Range {
    Range { at, length }
}

/// Gives a linker all calls of the interface.
pub(crate) fn link(linker: &mut Linker<World>) -> Result<(), LinkerError> {
    linker.func_wrap(MODULE, "proc_exit", |code: i32| -> Result<(), wasmi::Error> {
        Err(wasmi::Error::i32_exit(code))
    })?;
    link_process(linker)?;
    link_files(linker)?;
    link_more_of_files(linker)?;
    link_paths(linker)?;
    link_sockets(linker)
}

fn link_process(linker: &mut Linker<World>) -> Result<(), LinkerError> {
    calls! { linker, |world, guest|
        "args_get" (pointers: u32, texts: u32) => process::put(&world.arguments, guest, pointers, texts);
        "args_sizes_get" (count: u32, bytes: u32) => process::put_sizes(&world.arguments, guest, count, bytes);
        "environ_get" (pointers: u32, texts: u32) => process::put(&world.environment, guest, pointers, texts);
        "environ_sizes_get" (count: u32, bytes: u32) => process::put_sizes(&world.environment, guest, count, bytes);
        "clock_res_get" (clock: u32, told: u32) => clocks::resolution(guest, clock, told);
        "clock_time_get" (clock: u32, _precision: u64, told: u32) => clocks::now(guest, clock, told);
        "random_get" (at: u32, length: u32) => process::random(guest, range(at, length));
    }
    linker.func_wrap(MODULE, "sched_yield", || -> u32 {
        std::thread::yield_now();
        0
    })?;
    linker.func_wrap(MODULE, "proc_raise", |_signal: u32| Errno::NOSYS.number())?;
    Ok(())
}

fn link_files(linker: &mut Linker<World>) -> Result<(), LinkerError> {
    calls! { linker, |world, guest|
        "fd_close" (fd: u32) => world.table.close(fd);
        "fd_renumber" (from: u32, to: u32) => world.table.renumber(from, to);
        "fd_prestat_get" (fd: u32, told: u32) => files::given(&world.table, guest, fd, told);
        "fd_prestat_dir_name" (fd: u32, at: u32, length: u32) =>
            files::name_of_given(&world.table, guest, fd, range(at, length));
        "fd_read" (fd: u32, at: u32, count: u32, told: u32) =>
            files::read(&world.table, guest, fd, range(at, count), None, told);
        "fd_pread" (fd: u32, at: u32, count: u32, offset: u64, told: u32) =>
            files::read(&world.table, guest, fd, range(at, count), Some(offset), told);
        "fd_write" (fd: u32, at: u32, count: u32, told: u32) =>
            files::write(&world.table, guest, fd, range(at, count), None, told);
        "fd_pwrite" (fd: u32, at: u32, count: u32, offset: u64, told: u32) =>
            files::write(&world.table, guest, fd, range(at, count), Some(offset), told);
        "fd_seek" (fd: u32, offset: i64, whence: u32, told: u32) =>
            files::seek(&world.table, guest, fd, offset, whence, told);
        "fd_tell" (fd: u32, told: u32) => files::seek(&world.table, guest, fd, 0, files::FROM_CURRENT, told);
        "fd_readdir" (fd: u32, at: u32, length: u32, cookie: u64, told: u32) =>
            files::read_directory(&world.table, guest, fd, range(at, length), cookie, told);
    }
    Ok(())
}

fn link_more_of_files(linker: &mut Linker<World>) -> Result<(), LinkerError> {
    calls! { linker, |world, guest|
        "fd_advise" (fd: u32, _offset: u64, _length: u64, _advice: u32) => world.table.find(fd).map(drop);
        "fd_allocate" (fd: u32, offset: u64, length: u64) => files::allocate(&world.table, fd, offset, length);
        "fd_datasync" (fd: u32) => files::sync_data(&world.table, fd);
        "fd_sync" (fd: u32) => files::sync(&world.table, fd);
        "fd_fdstat_get" (fd: u32, told: u32) => status::of_descriptor(&world.table, guest, fd, told);
        "fd_fdstat_set_flags" (fd: u32, flags: u32) => status::set_flags(&world.table, fd, flags);
        "fd_filestat_get" (fd: u32, told: u32) => status::of_file(&world.table, guest, fd, told);
        "fd_filestat_set_size" (fd: u32, size: u64) => files::resize(&world.table, fd, size);
        "fd_filestat_set_times" (fd: u32, accessed: u64, modified: u64, flags: u32) =>
            status::set_times(&world.table, fd, accessed, modified, flags);
    }
    linker.func_wrap(
        MODULE,
        "fd_fdstat_set_rights",
        |_fd: u32, _own: u64, _inherited: u64| Errno::NOSYS.number(),
    )?;
    Ok(())
}

fn link_paths(linker: &mut Linker<World>) -> Result<(), LinkerError> {
    calls! { linker, |world, guest|
        "path_open" (fd: u32, lookup: u32, at: u32, length: u32, how: u32, rights: u64, _inherited: u64, flags: u32, told: u32) =>
            paths::open(&mut world.table, guest, (fd, range(at, length)), &paths::Opening { lookup, how, rights, flags }, told);
        "path_create_directory" (fd: u32, at: u32, length: u32) =>
            paths::make_directory(&world.table, guest, (fd, range(at, length)));
        "path_remove_directory" (fd: u32, at: u32, length: u32) =>
            paths::remove_directory(&world.table, guest, (fd, range(at, length)));
        "path_unlink_file" (fd: u32, at: u32, length: u32) =>
            paths::remove_file(&world.table, guest, (fd, range(at, length)));
        "path_filestat_get" (fd: u32, lookup: u32, at: u32, length: u32, told: u32) =>
            paths::status(&world.table, guest, (fd, range(at, length)), lookup, told);
        "path_filestat_set_times" (fd: u32, lookup: u32, at: u32, length: u32, accessed: u64, modified: u64, flags: u32) =>
            paths::set_times(&world.table, guest, (fd, range(at, length)), lookup, status::times(accessed, modified, flags)?);
        "path_readlink" (fd: u32, at: u32, length: u32, into: u32, into_length: u32, told: u32) =>
            paths::read_link(&world.table, guest, (fd, range(at, length)), range(into, into_length), told);
        "path_symlink" (target: u32, target_length: u32, fd: u32, at: u32, length: u32) =>
            paths::link_by_name(&world.table, guest, range(target, target_length), (fd, range(at, length)));
        "path_link" (fd: u32, lookup: u32, at: u32, length: u32, to_fd: u32, to: u32, to_length: u32) =>
            paths::link(&world.table, guest, (fd, range(at, length)), lookup, (to_fd, range(to, to_length)));
        "path_rename" (fd: u32, at: u32, length: u32, to_fd: u32, to: u32, to_length: u32) =>
            paths::rename(&world.table, guest, (fd, range(at, length)), (to_fd, range(to, to_length)));
    }
    Ok(())
}

fn link_sockets(linker: &mut Linker<World>) -> Result<(), LinkerError> {
    calls! { linker, |world, guest|
        "poll_oneoff" (asked: u32, events: u32, count: u32, told: u32) =>
            poll::wait(&world.table, guest, asked, events, count, told);
        "sock_accept" (fd: u32, flags: u32, told: u32) => sockets::accept(&mut world.table, guest, fd, flags, told);
        "sock_recv" (fd: u32, at: u32, count: u32, flags: u32, told: u32, told_flags: u32) =>
            sockets::receive(&world.table, guest, (fd, range(at, count)), flags, (told, told_flags));
        "sock_send" (fd: u32, at: u32, count: u32, _flags: u32, told: u32) =>
            sockets::send(&world.table, guest, fd, range(at, count), told);
        "sock_shutdown" (fd: u32, how: u32) => sockets::shut_down(&world.table, fd, how);
    }
    Ok(())
}
