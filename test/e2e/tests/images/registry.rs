//! Debian's `docker-registry` with a password, and a gate before it that can be shut in the middle of a layer.

use kedge_e2e::wait_for;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};

pub(crate) const USER: &str = "gate";
pub(crate) const PASSWORD: &str = "sesame";
/// Of [`PASSWORD`], with the lowest cost that bcrypt has.
const HTPASSWD: &str = "gate:$2b$04$iVYUziqwJl8dv03W0jFQCeZ1uQdgVxhMw3a3aGYHNyoJMcidEA0BC\n";

/// Runs a program to its end and wants success.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is missing, Debian has it: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {words}");
    output
}

/// A registry of this test; it ends with it.
pub(crate) struct Registry {
    child: Child,
    pub(crate) port: u16,
}

impl Registry {
    pub(crate) fn start(directory: &Path) -> Self {
        let folder = directory.join("registry");
        std::fs::create_dir_all(&folder).unwrap();
        let passwords = folder.join("htpasswd");
        std::fs::write(&passwords, HTPASSWD).unwrap();
        let port = kedge_e2e::ports::block(1);
        let config = folder.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\nauth: {{htpasswd: {{realm: kedge, path: {}}}}}\n",
            folder.join("data").display(),
            passwords.display(),
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let registry = Self {
            child: child.unwrap_or_else(|error| panic!("docker-registry is missing, Debian has it: {error}")),
            port,
        };
        wait_for("the registry listens", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|error| error.to_string())
        });
        registry
    }

    /// Its name in references.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes an image with skopeo, from wherever that can take it.
    pub(crate) fn push(&self, from: &str, name: &str) {
        let credentials = format!("{USER}:{PASSWORD}");
        let to = format!("docker://{}/{name}", self.host());
        let fixed = [
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            "--dest-creds",
            &credentials,
        ];
        run("skopeo", &[&fixed[..], &[from, &to]].concat());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An image that umoci makes: busybox, and a file of so many bytes that do not shrink.
pub(crate) fn umoci_image(directory: &Path, ballast: usize) -> PathBuf {
    let layout = directory.join("umoci");
    let image = format!("{}:1", layout.display());
    run("umoci", &["init", "--layout", &layout.display().to_string()]);
    run("umoci", &["new", "--image", &image]);
    let insert = ["insert", "--image", &image];
    run(
        "umoci",
        &[&insert[..], &["/usr/bin/busybox", "/bin/busybox"]].concat(),
    );
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    let file = directory.join("noise");
    std::fs::write(&file, noise.take(ballast).collect::<Vec<u8>>()).unwrap();
    run(
        "umoci",
        &[&insert[..], &[&file.display().to_string(), "/noise"]].concat(),
    );
    let tree = directory.join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("sub/text"), "from umoci\n").unwrap();
    std::os::unix::fs::symlink("sub/text", tree.join("link")).unwrap();
    run(
        "umoci",
        &[&insert[..], &[&tree.display().to_string(), "/opt"]].concat(),
    );
    // What it replaces is deleted by a whiteout.
    std::fs::remove_file(tree.join("link")).unwrap();
    run(
        "umoci",
        &[&insert[..], &["--opaque", &tree.display().to_string(), "/opt"]].concat(),
    );
    let config = [
        "config",
        "--image",
        &image,
        "--config.entrypoint",
        "/bin/busybox",
        "--config.env",
        "WHO=umoci",
    ];
    run(
        "umoci",
        &[&config[..], &["--config.workingdir", "/opt/sub"]].concat(),
    );
    layout
}

/// An image of two layers that buildah makes from nothing, by running commands in it; its archive.
pub(crate) fn buildah_image(directory: &Path) -> PathBuf {
    let store = |name: &str| directory.join("buildah").join(name).display().to_string();
    let (root, run_root) = (store("root"), store("run"));
    let fixed = ["--root", &root, "--runroot", &run_root, "--storage-driver", "vfs"];
    let buildah = |args: &[&str]| {
        let output = run("buildah", &[&fixed[..], args].concat());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let shell = |container: &str, script: &str| {
        let words = [
            "run",
            "--isolation",
            "chroot",
            container,
            "/bin/busybox",
            "sh",
            "-c",
            script,
        ];
        buildah(&words)
    };
    let first = buildah(&["from", "scratch"]);
    buildah(&["copy", &first, "/usr/bin/busybox", "/bin/busybox"]);
    shell(
        &first,
        "busybox mkdir -p /opt /usr/bin /shared && busybox chmod 1777 /shared && busybox ln /bin/busybox /bin/sh && \
         echo first > /opt/text && echo gone > /opt/gone",
    );
    buildah(&[
        "config",
        "--entrypoint",
        r#"["/bin/busybox"]"#,
        "--env",
        "WHO=buildah",
        &first,
    ]);
    buildah(&["commit", "--quiet", &first, "kedge.test/built:1"]);
    let second = buildah(&["from", "--pull-never", "kedge.test/built:1"]);
    shell(
        &second,
        "busybox rm /opt/gone && echo second > /opt/text && echo x > /shared/x && \
         busybox ln /bin/busybox /usr/bin/again",
    );
    let archive = directory.join("buildah.tar");
    let to = format!("oci-archive:{}:kedge.test/built:2", archive.display());
    buildah(&["commit", "--quiet", &second, &to]);
    archive
}

/// What the gate knows.
#[derive(Default)]
struct Flow {
    /// Bytes that may still pass to the client; `None`: any number.
    allowed: Option<usize>,
    /// What clients sent.
    asked: String,
}

/// Passes connections on to a registry.
#[derive(Clone)]
pub(crate) struct Gate {
    port: u16,
    flow: Arc<(Mutex<Flow>, Condvar)>,
}

impl Gate {
    pub(crate) fn before(registry: &Registry) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let gate = Self {
            port: listener.local_addr().unwrap().port(),
            flow: Arc::default(),
        };
        let behind = SocketAddr::from((Ipv4Addr::LOCALHOST, registry.port));
        let passing = gate.clone();
        // Its threads end with the test program; each connection ends with its client.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (passing, registry) = (passing.clone(), TcpStream::connect(behind).unwrap());
                std::thread::spawn(move || passing.pass(&client, &registry));
            }
        });
        gate
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Lets so many bytes more pass, and then none.
    pub(crate) fn shut_after(&self, bytes: usize) {
        self.flow.0.lock().unwrap().allowed = Some(bytes);
    }

    pub(crate) fn open(&self) {
        self.flow.0.lock().unwrap().allowed = None;
        self.flow.1.notify_all();
    }

    /// All that clients have sent.
    pub(crate) fn asked(&self) -> String {
        self.flow.0.lock().unwrap().asked.clone()
    }

    fn pass(&self, client: &TcpStream, registry: &TcpStream) {
        let (mut from, mut to) = (client.try_clone().unwrap(), registry.try_clone().unwrap());
        let flow = Arc::clone(&self.flow);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                flow.0.lock().unwrap().asked += &String::from_utf8_lossy(&buffer[..read]);
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
        let (mut from, mut to) = (registry, client);
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let mut flow = self.flow.0.lock().unwrap();
            while flow.allowed.is_some_and(|allowed| allowed < read) {
                flow = self.flow.1.wait(flow).unwrap();
            }
            flow.allowed = flow.allowed.map(|allowed| allowed - read);
            drop(flow);
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}
