//! Modules written for tests: a story of calls, each with the number that it shall answer.

use std::fmt::Write as _;

/// Name, parameters: `i` and `l` are numbers of 32 and 64 bits.
const CALLS: [(&str, &str); 28] = [
    ("args_get", "ii"),
    ("args_sizes_get", "ii"),
    ("environ_get", "ii"),
    ("environ_sizes_get", "ii"),
    ("clock_time_get", "ili"),
    ("random_get", "ii"),
    ("fd_close", "i"),
    ("fd_fdstat_get", "ii"),
    ("fd_filestat_get", "ii"),
    ("fd_pread", "iiili"),
    ("fd_prestat_get", "ii"),
    ("fd_read", "iiii"),
    ("fd_readdir", "iiili"),
    ("fd_renumber", "ii"),
    ("fd_seek", "ilii"),
    ("fd_write", "iiii"),
    ("path_create_directory", "iii"),
    ("path_filestat_get", "iiiii"),
    ("path_filestat_set_times", "iiiilli"),
    ("path_link", "iiiiiii"),
    ("path_open", "iiiiillii"),
    ("path_readlink", "iiiiii"),
    ("path_remove_directory", "iii"),
    ("path_rename", "iiiiii"),
    ("path_symlink", "iiiii"),
    ("path_unlink_file", "iii"),
    ("poll_oneoff", "iiii"),
    ("sock_accept", "iii"),
];

/// Answers that stories expect.
pub(crate) const ACCESS: u32 = 2;
pub(crate) const BADF: u32 = 8;
pub(crate) const EXIST: u32 = 20;
pub(crate) const FAULT: u32 = 21;
pub(crate) const INVAL: u32 = 28;
pub(crate) const ISDIR: u32 = 31;
pub(crate) const LOOP: u32 = 32;
pub(crate) const NOENT: u32 = 44;
pub(crate) const NOTDIR: u32 = 54;
pub(crate) const PERM: u32 = 63;

pub(crate) const CREATE: u32 = 1;
pub(crate) const DIRECTORY: u32 = 2;
const READS_AND_WRITES: u64 = (1 << 1) | (1 << 6) | (1 << 14) | (1 << 22);
/// The module's root.
pub(crate) const ROOT: &str = "(i32.const 3)";

/// Where texts begin; below lie results.
const TEXTS_AT: u32 = 4096;
/// Where what is read goes.
pub(crate) const BUFFER: u32 = 32 * 1024;
/// A step that answers otherwise ends the module with its number, counted from this one; its answer is on standard error.
pub(crate) const STEP_BASE: u32 = 100;

pub(crate) struct Story {
    texts: String,
    body: String,
    next_text: u32,
    next_slot: u32,
    steps: u32,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self {
            texts: String::new(),
            body: String::new(),
            next_text: TEXTS_AT,
            next_slot: 64,
            steps: 0,
        }
    }

    /// A place in the memory for a result.
    pub(crate) fn slot(&mut self) -> u32 {
        self.next_slot += 8;
        self.next_slot
    }

    /// The two arguments that name a text.
    pub(crate) fn text(&mut self, text: &str) -> String {
        let at = self.next_text;
        let escaped: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
        writeln!(self.texts, "(data (i32.const {at}) \"{escaped}\")").unwrap();
        self.next_text += u32::try_from(text.len()).unwrap() + 1;
        format!("(i32.const {at}) (i32.const {})", text.len())
    }

    /// A list of one vector: that text.
    pub(crate) fn vector(&mut self, text: &str) -> String {
        let list = self.slot();
        let named = self.text(text);
        let (at, length) = named.split_at(named.find(") (").unwrap() + 1);
        self.line(&format!(
            "(i32.store (i32.const {list}) {at}) (i32.store (i32.const {}) {length})",
            list + 4
        ));
        format!("(i32.const {list}) (i32.const 1)")
    }

    pub(crate) fn line(&mut self, code: &str) {
        self.body.push_str(code);
        self.body.push('\n');
    }

    /// A call that shall answer `want`.
    pub(crate) fn call(&mut self, want: u32, name: &str, arguments: &str) {
        let step = STEP_BASE + self.steps;
        self.steps += 1;
        self.line(&format!(
            "(call $check (call ${name} {arguments}) (i32.const {want}) (i32.const {step}))"
        ));
    }

    /// Opens a path, follows links, and gives the code for its number.
    pub(crate) fn open(&mut self, want: u32, directory: &str, path: &str, how: u32) -> String {
        let slot = self.slot();
        let path = self.text(path);
        let rights = if how == DIRECTORY {
            1 << 14
        } else {
            READS_AND_WRITES
        };
        self.call(
            want,
            "path_open",
            &format!("{directory} (i32.const 1) {path} (i32.const {how}) (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const {slot})"),
        );
        format!("(i32.load (i32.const {slot}))")
    }

    /// Writes a text to something that is open.
    pub(crate) fn write(&mut self, fd: &str, text: &str) {
        let vector = self.vector(text);
        let told = self.slot();
        self.call(0, "fd_write", &format!("{fd} {vector} (i32.const {told})"));
    }

    /// Passes on to standard output as many bytes of the buffer as the slot says.
    pub(crate) fn print_buffer(&mut self, length: &str) {
        let (list, told) = (self.slot(), self.slot());
        self.line(&format!(
            "(i32.store (i32.const {list}) (i32.const {BUFFER})) (i32.store (i32.const {}) {length})",
            list + 4
        ));
        self.call(
            0,
            "fd_write",
            &format!("(i32.const 1) (i32.const {list}) (i32.const 1) (i32.const {told})"),
        );
    }

    /// Reads at most so much into the buffer; gives the code for how much it was.
    pub(crate) fn read(&mut self, want: u32, fd: &str, most: u32) -> String {
        let (list, told) = (self.slot(), self.slot());
        self.line(&format!("(i32.store (i32.const {list}) (i32.const {BUFFER})) (i32.store (i32.const {}) (i32.const {most}))", list + 4));
        self.call(
            want,
            "fd_read",
            &format!("{fd} (i32.const {list}) (i32.const 1) (i32.const {told})"),
        );
        format!("(i32.load (i32.const {told}))")
    }

    pub(crate) fn text_of_module(&self) -> String {
        let mut text = String::from("(module\n");
        for (name, parameters) in CALLS {
            let kinds: Vec<&str> = parameters
                .chars()
                .map(|kind| if kind == 'l' { "i64" } else { "i32" })
                .collect();
            let kinds = kinds.join(" ");
            writeln!(
                text,
                "(import \"wasi_snapshot_preview1\" \"{name}\" (func ${name} (param {kinds}) (result i32)))"
            )
            .unwrap();
        }
        text.push_str("(import \"wasi_snapshot_preview1\" \"proc_exit\" (func $proc_exit (param i32)))\n");
        text.push_str("(memory (export \"memory\") 2)\n");
        text.push_str(&self.texts);
        // An answer that is not as it should be is told in two digits.
        text.push_str(
            "(func $check (param $got i32) (param $want i32) (param $step i32)
               (if (i32.ne (local.get $got) (local.get $want)) (then
                 (i32.store8 (i32.const 16) (i32.add (i32.const 48) (i32.div_u (local.get $got) (i32.const 10))))
                 (i32.store8 (i32.const 17) (i32.add (i32.const 48) (i32.rem_u (local.get $got) (i32.const 10))))
                 (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 2))
                 (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
                 (call $proc_exit (local.get $step)))))\n",
        );
        writeln!(text, "(func (export \"_start\")\n{}))", self.body).unwrap();
        text
    }
}
