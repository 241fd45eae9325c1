//! A runtime behind a socket for the edge of a [`Site`](crate::site::Site), with the image of the tests.

use crate::images;
use kedge_containerd::{ContainerdMake, CrioMake, Daemon, Make};
use kedge_runtime::Runtime as _;
use std::path::PathBuf;

/// It ends with the test, with everything that ran on it.
#[derive(Debug)]
pub struct Behind<M: Make> {
    tokio: tokio::runtime::Runtime,
    /// `None` while it is taken down.
    inner: Option<Daemon<M>>,
    dir: PathBuf,
}

pub type Containerd = Behind<ContainerdMake>;
pub type Crio = Behind<CrioMake>;

impl<M: Make> Behind<M> {
    /// Starts it in a directory of its own.
    ///
    /// # Panics
    /// When it does not come up; the packages are those that `.ci/run` installs.
    pub fn start(name: &str) -> Self {
        let name = format!("{}-{name}", M::NAME);
        let dir = std::env::temp_dir().join(format!("kedge-e2e-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder for temporary files");
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let inner = tokio.block_on(Daemon::start(&dir));
        let inner = inner.expect("the runtime starts");
        let archive = dir.join("busybox.tar");
        images::write_busybox(&archive);
        inner.import(&archive).expect("the runtime takes the image");
        Self {
            tokio,
            inner: Some(inner),
            dir,
        }
    }

    fn inner(&self) -> &Daemon<M> {
        self.inner.as_ref().expect("it is there until it is dropped")
    }

    fn inner_mut(&mut self) -> &mut Daemon<M> {
        self.inner.as_mut().expect("it is there until it is dropped")
    }

    /// For `containerRuntimeEndpoint`.
    pub fn endpoint(&self) -> String {
        self.inner().endpoint()
    }

    /// For `cgroupRoot`.
    pub fn cgroup_root(&self) -> String {
        self.inner().cgroup_root()
    }

    /// SIGKILL; the pods' shims stay.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.inner_mut().kill();
    }

    /// # Panics
    /// When it does not come up again.
    pub fn start_again(&mut self) {
        let Self { tokio, inner, .. } = self;
        let inner = inner.as_mut().expect("it is there until it is dropped");
        tokio
            .block_on(inner.start_again())
            .expect("the runtime starts again");
    }

    /// The ids of a pod's containers, its sandbox included.
    ///
    /// # Panics
    /// When the runtime does not answer.
    pub fn containers_of(&self, pod: &str) -> Vec<String> {
        let client = self.inner().connect();
        let listed = self.tokio.block_on(client.list()).expect("the runtime answers");
        let own = listed.into_iter().filter(|sandbox| sandbox.pod.name == pod);
        own.flat_map(|sandbox| {
            let containers = sandbox.containers.into_iter().map(|container| container.id.0);
            [sandbox.id.0].into_iter().chain(containers)
        })
        .collect()
    }
}

impl Containerd {
    /// A plain container that sleeps, from an image that is there.
    ///
    /// # Panics
    /// When containerd does not run it.
    pub fn run(&self, name: &str) {
        let program = ["/bin/sleep", "1000000"];
        let run = ["run", "--detach", images::BUSYBOX, name];
        let ran = self.inner().ctr(&[&run[..], &program].concat());
        ran.expect("ctr run");
    }

    /// Ends what [`Containerd::run`] began.
    ///
    /// # Panics
    /// When containerd does not end it.
    pub fn end_run(&self, name: &str) {
        for command in [
            &["task", "delete", "--force", name][..],
            &["container", "delete", name],
        ] {
            self.inner().ctr(command).expect("ctr delete");
        }
    }
}

impl<M: Make> Drop for Behind<M> {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            self.tokio.block_on(inner.end());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
