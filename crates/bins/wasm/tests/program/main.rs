//! The program as it is, with modules that are written in text.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod story;

use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use story::{
    ACCESS, BADF, BUFFER, CREATE, DIRECTORY, EXIST, FAULT, INVAL, ISDIR, LOOP, NOENT, NOTDIR, PERM, ROOT,
    Story,
};

const NOT_BEGUN: Option<i32> = Some(126);
const TRAPPED: Option<i32> = Some(134);

/// A directory of a test's own.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static FOLDERS: AtomicU32 = AtomicU32::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kedge-wasm-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        // The way to it shall have no links, which end at the root.
        Self(path.canonicalize().unwrap())
    }

    /// As the module names it below its root.
    fn name(&self) -> String {
        self.0.to_str().unwrap().trim_start_matches('/').to_owned()
    }

    fn command(&self, module: &[u8]) -> Command {
        let path = self.0.join("module.wasm");
        std::fs::write(&path, module).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kedge-wasm"));
        command.arg(path).env_clear().stdin(Stdio::null());
        command
    }

    fn run(&self, module: &[u8]) -> Output {
        self.command(module).output().unwrap()
    }

    fn tell(&self, story: &Story) -> String {
        told(&self.run(&binary(&story.text_of_module())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn binary(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// What a story that went well has printed.
fn told(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a module that failed left behind: its code and its last words.
fn failed(output: &Output) -> (Option<i32>, String) {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), errors.trim_end().to_owned())
}

#[test]
fn arguments_environment_and_exit_code_are_the_processes_own() {
    let folder = Folder::new();
    let mut story = Story::new();
    for (get, sizes) in [
        ("args_get", "args_sizes_get"),
        ("environ_get", "environ_sizes_get"),
    ] {
        let (count, bytes) = (story.slot(), story.slot());
        story.call(0, sizes, &format!("(i32.const {count}) (i32.const {bytes})"));
        story.call(0, get, &format!("(i32.const 2048) (i32.const {BUFFER})"));
        story.print_buffer(&format!("(i32.load (i32.const {bytes}))"));
    }
    story.line("(call $proc_exit (i32.const 263))");
    let mut command = folder.command(&binary(&story.text_of_module()));
    let output = command
        .args(["one", "two words"])
        .env("NAME", "value")
        .current_dir("/usr")
        .output()
        .unwrap();
    let module = folder.0.join("module.wasm");
    assert_eq!(output.status.code(), Some(7), "the lowest eight bits");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).replace('\0', "\n"),
        format!("{}\none\ntwo words\nNAME=value\nPWD=/usr\n", module.display())
    );
}

#[test]
fn files_are_made_read_listed_and_removed() {
    let folder = Folder::new();
    let mut story = Story::new();
    let top = story.open(0, ROOT, &folder.name(), DIRECTORY);
    let name = story.text("sub");
    story.call(0, "path_create_directory", &format!("{top} {name}"));
    story.call(EXIST, "path_create_directory", &format!("{top} {name}"));
    let file = story.open(0, &top, "sub/file", CREATE);
    story.write(&file, "some text");
    let at = story.slot();
    story.call(
        0,
        "fd_seek",
        &format!("{file} (i64.const 5) (i32.const 0) (i32.const {at})"),
    );
    story.call(
        INVAL,
        "fd_seek",
        &format!("{file} (i64.const -1) (i32.const 0) (i32.const {at})"),
    );
    let length = story.read(0, &file, 100);
    story.print_buffer(&length);
    let status = format!("(i32.const {BUFFER})");
    story.call(0, "fd_filestat_get", &format!("{file} {status}"));
    // Nine bytes, of a regular file.
    story.line(&format!(
        "(call $check (i32.load (i32.const {})) (i32.const 9) (i32.const 90))",
        BUFFER + 32
    ));
    story.line(&format!(
        "(call $check (i32.load8_u (i32.const {})) (i32.const 4) (i32.const 91))",
        BUFFER + 16
    ));
    let (from, to) = (story.text("sub/file"), story.text("sub/moved"));
    story.call(
        0,
        "path_filestat_set_times",
        &format!("{top} (i32.const 1) {from} (i64.const 0) (i64.const 5000000000) (i32.const 5)"),
    );
    story.call(
        0,
        "path_filestat_get",
        &format!("{top} (i32.const 1) {from} {status}"),
    );
    story.line(&format!(
        "(call $check (i32.wrap_i64 (i64.div_u (i64.load (i32.const {})) (i64.const 1000000000))) (i32.const 5) (i32.const 92))",
        BUFFER + 48
    ));
    story.call(0, "path_rename", &format!("{top} {from} {top} {to}"));
    let sub = story.open(0, &top, "sub", DIRECTORY);
    let used = story.slot();
    story.call(
        0,
        "fd_readdir",
        &format!("{sub} (i32.const {BUFFER}) (i32.const 4096) (i64.const 0) (i32.const {used})"),
    );
    story.print_buffer(&format!("(i32.load (i32.const {used}))"));
    story.read(ISDIR, &sub, 10);
    let named = story.text("sub/moved/");
    story.call(NOTDIR, "path_unlink_file", &format!("{top} {named}"));
    story.call(0, "path_unlink_file", &format!("{top} {to}"));
    story.call(0, "path_remove_directory", &format!("{top} {name}"));
    story.call(
        NOENT,
        "path_filestat_get",
        &format!("{top} (i32.const 1) {to} {status}"),
    );
    story.call(0, "fd_close", &file);
    story.call(BADF, "fd_close", &file);
    let told = folder.tell(&story);
    assert!(told.starts_with("text"), "{told:?}");
    assert_eq!(told.matches("moved").count(), 1, "{told:?}");
    assert!(!folder.0.join("sub").exists());
}

#[test]
fn nothing_leads_out_of_a_directory() {
    let folder = Folder::new();
    let inside = folder.0.join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(folder.0.join("secret"), "secret").unwrap();
    std::fs::write(inside.join("own"), "own").unwrap();
    let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, inside.join(name)).unwrap();
    link(Path::new("../secret"), "upwards");
    link(&folder.0.join("secret"), "absolute");
    link(Path::new("own"), "good");
    link(Path::new("turning"), "turning");
    link(&folder.0, "out");

    let mut story = Story::new();
    let top = story.open(0, ROOT, &format!("{}/inside", folder.name()), DIRECTORY);
    let absolute = folder.0.join("secret").display().to_string();
    for path in [
        "../secret",
        "..",
        "x/../../secret",
        "upwards",
        "absolute",
        "out/secret",
        "good/../../secret",
        &absolute,
    ] {
        let want = if path.starts_with("x/") {
            NOENT
        } else if path.starts_with("good/") {
            NOTDIR
        } else {
            PERM
        };
        story.open(want, &top, path, 0);
    }
    story.open(PERM, &top, "../made", CREATE);
    story.open(LOOP, &top, "turning", 0);
    let good = story.open(0, &top, "good", 0);
    let length = story.read(0, &good, 10);
    story.print_buffer(&length);
    let (up, made, own) = (story.text("../secret"), story.text("../made"), story.text("own"));
    let through = story.text("out/made");
    let out = story.text("out");
    story.call(PERM, "path_unlink_file", &format!("{top} {up}"));
    let named = story.text("..");
    story.call(PERM, "path_remove_directory", &format!("{top} {named}"));
    for made in [&made, &through] {
        story.call(PERM, "path_create_directory", &format!("{top} {made}"));
        story.call(PERM, "path_rename", &format!("{top} {own} {top} {made}"));
        story.call(
            PERM,
            "path_link",
            &format!("{top} (i32.const 0) {own} {top} {made}"),
        );
        story.call(PERM, "path_symlink", &format!("{own} {top} {made}"));
        story.call(
            PERM,
            "path_filestat_get",
            &format!("{top} (i32.const 1) {made} (i32.const {BUFFER})"),
        );
    }
    let named = story.text("taken");
    story.call(PERM, "path_rename", &format!("{top} {up} {top} {named}"));
    // The link itself may be looked at, and where it leads may be told.
    let told = story.slot();
    story.call(
        0,
        "path_readlink",
        &format!("{top} {out} (i32.const {BUFFER}) (i32.const 4096) (i32.const {told})"),
    );
    story.call(
        INVAL,
        "path_readlink",
        &format!("{top} {own} (i32.const {BUFFER}) (i32.const 4096) (i32.const {told})"),
    );
    // The root is the container's own: there an absolute link means what it says.
    let rooted = format!("{}/inside/absolute", folder.name());
    let secret = story.open(0, ROOT, &rooted, 0);
    let length = story.read(0, &secret, 10);
    story.print_buffer(&length);
    assert_eq!(folder.tell(&story), "ownsecret");
    assert_eq!(
        std::fs::read_dir(&folder.0).unwrap().count(),
        3,
        "nothing was made beside it"
    );
    assert!(folder.0.join("secret").exists() && inside.join("own").exists());
}

#[test]
fn processes_cannot_be_reached_as_files() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("/proc/self/mem", folder.0.join("mem")).unwrap();
    std::os::unix::fs::symlink("/proc/self", folder.0.join("self")).unwrap();
    let mut story = Story::new();
    story.open(ACCESS, ROOT, "proc", DIRECTORY);
    for path in [
        "proc/self/mem",
        "proc/self/status",
        "proc/1/../self/maps",
        "proc/sys/kernel/hostname",
    ] {
        story.open(ACCESS, ROOT, path, 0);
    }
    for name in ["mem", "self/mem", "self/environ"] {
        story.open(ACCESS, ROOT, &format!("{}/{name}", folder.name()), 0);
    }
    for path in ["proc/self/root/etc/hostname", "proc/self/cwd", "dev/fd/1"] {
        story.open(LOOP, ROOT, path, 0);
    }
    let (from, to) = (
        story.text("proc/self/comm"),
        story.text(&format!("{}/comm", folder.name())),
    );
    story.call(ACCESS, "path_rename", &format!("{ROOT} {from} {ROOT} {to}"));
    assert_eq!(folder.tell(&story), "");
}

#[test]
fn what_is_open_is_the_modules_own() {
    let folder = Folder::new();
    let mut story = Story::new();
    let told = format!("(i32.const {BUFFER})");
    story.call(0, "fd_prestat_get", &format!("{ROOT} {told}"));
    story.line(&format!(
        "(call $check (i32.load (i32.const {})) (i32.const 1) (i32.const 90))",
        BUFFER + 4
    ));
    for other in [0, 1, 2, 4, u32::MAX] {
        story.call(BADF, "fd_prestat_get", &format!("(i32.const {other}) {told}"));
    }
    // The streams go one way.
    story.read(BADF, "(i32.const 1)", 1);
    story.call(
        BADF,
        "fd_write",
        &format!("(i32.const 0) (i32.const 0) (i32.const 0) {told}"),
    );
    story.call(0, "fd_fdstat_get", &format!("(i32.const 1) {told}"));
    let file = story.open(0, ROOT, &format!("{}/file", folder.name()), CREATE);
    story.call(0, "fd_renumber", &format!("{file} (i32.const 1)"));
    story.write("(i32.const 1)", "not printed");
    story.call(BADF, "fd_renumber", "(i32.const 77) (i32.const 1)");
    story.call(0, "random_get", &format!("{told} (i32.const 70000)"));
    assert_eq!(folder.tell(&story), "");
    assert_eq!(
        std::fs::read_to_string(folder.0.join("file")).unwrap(),
        "not printed"
    );
}

#[test]
fn places_beyond_the_memory_are_refused_and_no_fault_of_ours() {
    let folder = Folder::new();
    let mut story = Story::new();
    let beyond = "(i32.const 131072)";
    let last = "(i32.const -1)";
    for place in [beyond, last] {
        story.call(FAULT, "args_sizes_get", &format!("{place} (i32.const 0)"));
        story.call(FAULT, "args_get", &format!("(i32.const 0) {place}"));
        story.call(
            FAULT,
            "clock_time_get",
            &format!("(i32.const 0) (i64.const 0) {place}"),
        );
        story.call(FAULT, "random_get", &format!("{place} {last}"));
        story.call(FAULT, "fd_filestat_get", &format!("{ROOT} {place}"));
        story.call(
            FAULT,
            "fd_write",
            &format!("(i32.const 1) {place} (i32.const 2) (i32.const 0)"),
        );
        story.call(
            FAULT,
            "path_unlink_file",
            &format!("{ROOT} {place} (i32.const 10)"),
        );
        story.call(
            FAULT,
            "fd_readdir",
            &format!("{ROOT} {place} (i32.const 10) (i64.const 0) (i32.const 0)"),
        );
        story.call(
            FAULT,
            "poll_oneoff",
            &format!("{place} {place} (i32.const 1) (i32.const 0)"),
        );
    }
    // Lists that nobody has room for.
    story.call(
        INVAL,
        "fd_write",
        &format!("(i32.const 1) (i32.const 0) {last} (i32.const 0)"),
    );
    story.call(
        INVAL,
        "poll_oneoff",
        &format!("(i32.const 0) (i32.const 0) {last} (i32.const 0)"),
    );
    story.call(
        INVAL,
        "poll_oneoff",
        "(i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)",
    );
    story.call(
        INVAL,
        "clock_time_get",
        "(i32.const 9) (i64.const 0) (i32.const 0)",
    );
    assert_eq!(folder.tell(&story), "");
}

/// Code that asks to be woken after so many milliseconds.
fn subscribe_clock(story: &mut Story, at: u32, milliseconds: u64) {
    story.line(&format!(
        "(i64.store (i32.const {at}) (i64.const 42)) (i32.store8 (i32.const {}) (i32.const 0))
         (i32.store (i32.const {}) (i32.const 1)) (i64.store (i32.const {}) (i64.const {}))",
        at + 8,
        at + 16,
        at + 24,
        milliseconds * 1_000_000
    ));
}

#[test]
fn time_passes_and_input_comes() {
    let folder = Folder::new();
    let mut story = Story::new();
    subscribe_clock(&mut story, BUFFER, 20);
    let (told, before, after) = (story.slot(), story.slot(), story.slot());
    story.call(
        0,
        "clock_time_get",
        &format!("(i32.const 1) (i64.const 0) (i32.const {before})"),
    );
    story.call(
        0,
        "poll_oneoff",
        &format!("(i32.const {BUFFER}) (i32.const 2048) (i32.const 1) (i32.const {told})"),
    );
    story.call(
        0,
        "clock_time_get",
        &format!("(i32.const 1) (i64.const 0) (i32.const {after})"),
    );
    story.line(&format!(
        "(call $check (i64.ge_u (i64.sub (i64.load (i32.const {after})) (i64.load (i32.const {before}))) (i64.const 20000000)) (i32.const 1) (i32.const 90))
         (call $check (i32.load (i32.const {told})) (i32.const 1) (i32.const 91))
         (call $check (i32.load (i32.const 2048)) (i32.const 42) (i32.const 92))"
    ));
    // An hour, or standard input; and a number that nobody has, which is told at once.
    for (fd, want_error, events) in [(0, 0, 1), (55, BADF, 1)] {
        subscribe_clock(&mut story, BUFFER, 3_600_000);
        let second = BUFFER + 48;
        story.line(&format!(
            "(i64.store (i32.const {second}) (i64.const 7)) (i32.store8 (i32.const {}) (i32.const 1)) (i32.store (i32.const {}) (i32.const {fd}))",
            second + 8,
            second + 16
        ));
        story.call(
            0,
            "poll_oneoff",
            &format!("(i32.const {BUFFER}) (i32.const 2048) (i32.const 2) (i32.const {told})"),
        );
        story.line(&format!(
            "(call $check (i32.load (i32.const {told})) (i32.const {events}) (i32.const 93))
             (call $check (i32.load (i32.const 2048)) (i32.const 7) (i32.const 94))
             (call $check (i32.load16_u (i32.const 2056)) (i32.const {want_error}) (i32.const 95))"
        ));
    }
    let length = story.read(0, "(i32.const 0)", 100);
    story.print_buffer(&length);
    let mut child = folder
        .command(&binary(&story.text_of_module()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"came in").unwrap();
    assert_eq!(told_by(child), "came in");
}

fn told_by(child: Child) -> String {
    told(&child.wait_with_output().unwrap())
}

#[test]
fn a_socket_listens_where_it_was_ordered() {
    let folder = Folder::new();
    let mut story = Story::new();
    let (listener, slot) = ("(i32.const 4)", story.slot());
    story.call(
        BADF,
        "fd_prestat_get",
        &format!("{listener} (i32.const {BUFFER})"),
    );
    story.write("(i32.const 1)", "up\n");
    story.call(
        0,
        "sock_accept",
        &format!("{listener} (i32.const 0) (i32.const {slot})"),
    );
    let connection = format!("(i32.load (i32.const {slot}))");
    let length = story.read(0, &connection, 100);
    story.write(&connection, "heard: ");
    let (list, told) = (story.slot(), story.slot());
    story.line(&format!(
        "(i32.store (i32.const {list}) (i32.const {BUFFER})) (i32.store (i32.const {}) {length})",
        list + 4
    ));
    story.call(
        0,
        "fd_write",
        &format!("{connection} (i32.const {list}) (i32.const 1) (i32.const {told})"),
    );

    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut child = folder
        .command(&binary(&story.text_of_module()))
        .env("KEDGE_WASM_LISTEN", address.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hello").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "heard: hello");
    assert_eq!(told_by(child), "");
    let mut command = folder.command(&binary(&story.text_of_module()));
    let output = command.env("KEDGE_WASM_LISTEN", "nonsense").output().unwrap();
    let (code, words) = failed(&output);
    assert!(
        code == NOT_BEGUN && words.contains("KEDGE_WASM_LISTEN=nonsense: at most 16 addresses"),
        "{words}"
    );
}

#[test]
fn what_is_no_program_is_refused_in_words() {
    let folder = Folder::new();
    let program = |body: &str| {
        binary(&format!(
            "(module {body} (memory (export \"memory\") 1) (func (export \"_start\")))"
        ))
    };
    let mut cut = program("");
    cut.truncate(cut.len() - 3);
    let cases: [(Vec<u8>, &str); 9] = [
        (b"".to_vec(), "it is no WebAssembly module"),
        (b"#!/bin/sh\n".to_vec(), "it is no WebAssembly module"),
        (
            b"\0asm\x0d\0\x01\0".to_vec(),
            "it is a WebAssembly component; only modules",
        ),
        (b"\0asm\x02\0\0\0".to_vec(), "it is no WebAssembly module"),
        (cut, "it is not valid: "),
        (
            binary("(module)"),
            "it exports no function _start, so it is a library",
        ),
        (
            program("(import \"env\" \"unknown\" (func))"),
            "it cannot be linked: ",
        ),
        (
            program("(import \"wasi_snapshot_preview1\" \"fd_close\" (func))"),
            "it cannot be linked: ",
        ),
        (program("(memory 1)"), "it is not valid: "),
    ];
    for (module, words) in cases {
        let (code, said) = failed(&folder.run(&module));
        assert!(
            code == NOT_BEGUN && said.contains(words),
            "{words:?}: {code:?} {said}"
        );
    }
    let missing = Command::new(env!("CARGO_BIN_EXE_kedge-wasm"))
        .arg("/no/such.wasm")
        .output()
        .unwrap();
    assert_eq!(
        failed(&missing),
        (
            NOT_BEGUN,
            "/no/such.wasm: it cannot be read: No such file or directory (os error 2)".to_owned()
        )
    );
}

#[test]
fn a_trap_ends_the_module_with_a_code_and_a_sentence() {
    let folder = Folder::new();
    let deep = "(func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))
                (func (export \"_start\") (drop (call $deep (i32.const 0))))";
    let cases = [
        (
            "(func (export \"_start\") unreachable)",
            "trap: wasm `unreachable` instruction executed",
        ),
        (
            "(func (export \"_start\") (drop (i32.load (i32.const 65536))))",
            "trap: out of bounds memory access",
        ),
        (
            "(func (export \"_start\") (drop (i32.div_u (i32.const 1) (i32.const 0))))",
            "trap: integer divide by zero",
        ),
        (
            "(func $s unreachable) (start $s) (func (export \"_start\"))",
            "trap: wasm `unreachable` instruction executed",
        ),
        (deep, "trap: call stack exhausted"),
    ];
    for (body, words) in cases {
        let module = binary(&format!("(module (memory (export \"memory\") 1) {body})"));
        let (code, said) = failed(&folder.run(&module));
        assert!(
            code == TRAPPED && said.ends_with(words),
            "{words:?}: {code:?} {said}"
        );
    }
    let silent = binary(
        "(module (import \"wasi_snapshot_preview1\" \"fd_close\" (func $close (param i32) (result i32)))
           (func (export \"_start\") (drop (call $close (i32.const 1)))))",
    );
    let (code, said) = failed(&folder.run(&silent));
    assert!(code == TRAPPED && said.contains("exports no memory"), "{said}");
}

#[test]
fn an_endless_loop_ends_when_it_is_asked() {
    let folder = Folder::new();
    let mut story = Story::new();
    story.write("(i32.const 1)", "up\n");
    story.line("(loop $for_ever (br $for_ever))");
    for (signal, number) in [("TERM", 15), ("INT", 2), ("USR1", 10), ("40", 40)] {
        let mut child = folder
            .command(&binary(&story.text_of_module()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        // SAFETY: the number is one of a signal, and the process our child that has not been waited for.
        #[allow(unsafe_code)]
        let sent = unsafe { nix::libc::kill(pid.as_raw(), number) };
        assert_eq!(sent, 0, "{signal}");
        assert_eq!(child.wait().unwrap().code(), Some(128 + number), "{signal}");
    }
}

/// A module with a little of everything.
fn sample() -> Vec<u8> {
    let mut story = Story::new();
    story.write("(i32.const 1)", "hello");
    story.open(0, ROOT, "etc/hostname", 0);
    story
        .line("(memory.fill (i32.const 0) (i32.const 7) (i32.const 100)) (drop (memory.grow (i32.const 1)))");
    binary(&story.text_of_module())
}

/// Longer than any broken module may compute.
const CPU_SECONDS_MAX: u64 = 1;

fn run_bounded(folder: &Folder, module: &[u8]) -> std::process::ExitStatus {
    let mut command = folder.command(module);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    bound(pid);
    let mut child = child;
    child.wait().unwrap()
}

fn bound(pid: nix::unistd::Pid) {
    use nix::libc::{RLIMIT_CPU, prlimit, rlimit};
    let limit = rlimit {
        rlim_cur: CPU_SECONDS_MAX,
        rlim_max: CPU_SECONDS_MAX + 1,
    };
    // SAFETY: the limit outlives the call, and no old one is asked for.
    #[allow(unsafe_code)]
    let set = unsafe { prlimit(pid.as_raw(), RLIMIT_CPU, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn broken_modules_end_in_words(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
        let folder = Folder::new();
        let mut module = sample();
        for (place, byte) in places {
            let place = place.index(module.len());
            module[place] = byte;
        }
        if !whole {
            module.truncate(cut.index(module.len()));
        }
        let status = run_bounded(&folder, &module);
        // 101 is a panic, a signal a fault of ours; a module that computes for ever is told to end by its limit.
        let ended = matches!(status.code(), Some(code) if code != 101);
        prop_assert!(ended, "{status:?} signal {:?}", status.signal());
    }
}
