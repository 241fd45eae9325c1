//! The interface's own numbers for what went wrong.

use rustix::io::Errno as Kernel;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(u16);

impl Errno {
    pub(super) const ACCESS: Self = Self(2);
    pub(super) const BADF: Self = Self(8);
    pub(super) const FAULT: Self = Self(21);
    pub(super) const ILSEQ: Self = Self(25);
    pub(super) const INVAL: Self = Self(28);
    pub(super) const IO: Self = Self(29);
    pub(super) const ISDIR: Self = Self(31);
    pub(super) const MFILE: Self = Self(33);
    pub(super) const NAMETOOLONG: Self = Self(37);
    pub(super) const NOENT: Self = Self(44);
    pub(super) const NOSYS: Self = Self(52);
    pub(super) const NOTDIR: Self = Self(54);
    pub(super) const NOTSOCK: Self = Self(57);
    pub(super) const NOTSUP: Self = Self(58);
    pub(super) const PERM: Self = Self(63);

    pub(super) fn number(self) -> u32 {
        u32::from(self.0)
    }
}

/// The kernel's numbers that a call of the interface can meet, with the interface's.
const KNOWN: [(Kernel, u16); 51] = [
    (Kernel::TOOBIG, 1),
    (Kernel::ACCESS, 2),
    (Kernel::ADDRINUSE, 3),
    (Kernel::ADDRNOTAVAIL, 4),
    (Kernel::AGAIN, 6),
    (Kernel::ALREADY, 7),
    (Kernel::BADF, 8),
    (Kernel::BUSY, 10),
    (Kernel::CONNABORTED, 13),
    (Kernel::CONNREFUSED, 14),
    (Kernel::CONNRESET, 15),
    (Kernel::DEADLK, 16),
    (Kernel::DQUOT, 19),
    (Kernel::EXIST, 20),
    (Kernel::FAULT, 21),
    (Kernel::FBIG, 22),
    (Kernel::HOSTUNREACH, 23),
    (Kernel::ILSEQ, 25),
    (Kernel::INPROGRESS, 26),
    (Kernel::INTR, 27),
    (Kernel::INVAL, 28),
    (Kernel::IO, 29),
    (Kernel::ISCONN, 30),
    (Kernel::ISDIR, 31),
    (Kernel::LOOP, 32),
    (Kernel::MFILE, 33),
    (Kernel::MLINK, 34),
    (Kernel::MSGSIZE, 35),
    (Kernel::NAMETOOLONG, 37),
    (Kernel::NETUNREACH, 40),
    (Kernel::NFILE, 41),
    (Kernel::NOBUFS, 42),
    (Kernel::NODEV, 43),
    (Kernel::NOENT, 44),
    (Kernel::NOMEM, 48),
    (Kernel::NOSPC, 51),
    (Kernel::NOSYS, 52),
    (Kernel::NOTCONN, 53),
    (Kernel::NOTDIR, 54),
    (Kernel::NOTEMPTY, 55),
    (Kernel::NOTSOCK, 57),
    (Kernel::OPNOTSUPP, 58),
    (Kernel::NOTTY, 59),
    (Kernel::NXIO, 60),
    (Kernel::OVERFLOW, 61),
    (Kernel::PERM, 63),
    (Kernel::PIPE, 64),
    (Kernel::RANGE, 68),
    (Kernel::ROFS, 69),
    (Kernel::SPIPE, 70),
    (Kernel::XDEV, 75),
];

impl From<Kernel> for Errno {
    fn from(kernel: Kernel) -> Self {
        let known = KNOWN.iter().find(|(number, _)| *number == kernel);
        known.map_or(Self::IO, |(_, number)| Self(*number))
    }
}
