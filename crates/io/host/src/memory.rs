//! What this process need not keep in memory while it waits.
//!
//! A process that has just started has been through most of its program: it read its configuration, made keys, opened its
//! store. Each page that it touched brought fifteen neighbours with it, because the kernel maps sixteen at a time. All of
//! them count as its memory until somebody else needs room, although the next hour may want a tenth of them.
//!
//! Giving pages of the program back is only a change of the books: they stay in the kernel's page cache, from which the
//! kernel may now take them first, and one that is wanted again is mapped again within microseconds.

use nix::libc::{self, c_int, c_void, size_t};
use nix::unistd::{SysconfVar, sysconf};
use std::ffi::CStr;
use std::ops::Range;

/// When the kernel does not say: the smallest there is. A larger one only makes it refuse.
const PAGE_BYTES_DEFAULT: usize = 4096;

/// Gives back the free memory of the heap, and every page of the program and its libraries that can be read again from
/// their files. Nothing that the process can observe changes, except that it uses less memory.
///
/// It takes well under a millisecond. Pages that are in use come back by themselves, so it is worth its price after work
/// that does not come again soon, and not while there is work.
pub fn give_back() {
    trim_heap();
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|bytes| usize::try_from(bytes).ok());
    let mut page = page.unwrap_or(PAGE_BYTES_DEFAULT);
    // SAFETY: `unmap_object` is what the call expects, and takes the pointer, which outlives the call, for what it is.
    #[allow(unsafe_code)]
    unsafe {
        libc::dl_iterate_phdr(Some(unmap_object), (&raw mut page).cast());
    }
}

/// Has all threads of this process allocate from `heaps` heaps at most. glibc makes up to eight for each processor, and
/// every one keeps what was freed in it, which is much for a process whose threads are seldom busy at one time.
///
/// To be called before there are threads. Where glibc is not the allocator it does nothing.
pub fn limit_heaps(heaps: u8) {
    // SAFETY: it changes a number in glibc, under its lock.
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, c_int::from(heaps));
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = heaps;
}

/// glibc keeps freed memory for later, in each of its heaps. Other libraries have no such call.
fn trim_heap() {
    // SAFETY: it may be called at any time; it touches no memory that is in use.
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Called by the loader for the program and for each library, which it keeps from being unloaded meanwhile.
///
/// # Safety
/// `info` is what `dl_iterate_phdr` gives; `page` points to the size of a page.
#[allow(unsafe_code)]
unsafe extern "C" fn unmap_object(info: *mut libc::dl_phdr_info, _: size_t, page: *mut c_void) -> c_int {
    const GO_ON: c_int = 0;
    // SAFETY: the caller's promise; the loader's table of `dlpi_phnum` headers is valid during this call.
    let (base, name, headers, page) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() || info.dlpi_name.is_null() {
            return GO_ON;
        }
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        let name = CStr::from_ptr(info.dlpi_name).to_bytes();
        (info.dlpi_addr, name, headers, *page.cast::<usize>())
    };
    // The program itself has no name. What is neither it nor a file belongs to the kernel.
    if !name.is_empty() && !name.starts_with(b"/") {
        return GO_ON;
    }
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = base.wrapping_add(header.p_vaddr);
        let (Ok(start), Ok(bytes)) = (usize::try_from(start), usize::try_from(header.p_memsz)) else {
            continue;
        };
        let pages = whole_pages(start, bytes, page);
        // SAFETY: these pages are mapped from a file and never were writable, so they hold what the file holds and are
        // read from there when they are touched again, just as those that nobody has touched yet. A kernel that refuses
        // leaves them as they are.
        unsafe {
            libc::madvise(pages.start as *mut c_void, pages.len(), libc::MADV_DONTNEED);
        }
    }
    GO_ON
}

/// The pages that lie in a segment with all their bytes: one that it shares may belong to a writable neighbour, too.
fn whole_pages(start: usize, bytes: usize, page: usize) -> Range<usize> {
    let end = start.saturating_add(bytes) / page * page;
    let start = start.div_ceil(page).saturating_mul(page);
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::hint::black_box;

    #[test]
    fn only_pages_that_belong_to_the_segment_as_a_whole() {
        let cases = [
            (0, 0),
            (0, 4096),
            (1, 4096),
            (1, 8191),
            (4096, 10_000),
            (8191, 1),
            (usize::MAX - 5, 100),
        ];
        let lines = cases.map(|(start, bytes)| {
            let pages = whole_pages(start, bytes, 4096);
            format!("{start:>20} + {bytes:<6} {} pages\n", pages.len() / 4096)
        });
        expect![[r#"
                               0 + 0      0 pages
                               0 + 4096   1 pages
                               1 + 4096   0 pages
                               1 + 8191   1 pages
                            4096 + 10000  2 pages
                            8191 + 1      0 pages
            18446744073709551610 + 100    0 pages
        "#]]
        .assert_eq(&lines.concat());
    }

    #[test]
    fn what_was_read_is_given_back_and_can_be_read_again() {
        const BYTES: usize = 1 << 20;
        static TABLE: [u8; BYTES] = [7; BYTES];
        let sum = || {
            black_box(&TABLE)
                .iter()
                .map(|byte| usize::from(*byte))
                .sum::<usize>()
        };
        assert_eq!(sum(), 7 * BYTES);
        let address = TABLE.as_ptr() as usize;
        let read = resident_around(address);
        give_back();
        let given = resident_around(address);
        assert!(given + BYTES / 2 < read, "{given} bytes after {read}");
        assert_eq!(sum(), 7 * BYTES);
    }

    /// Resident bytes of the mapping that holds an address.
    fn resident_around(address: usize) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines();
        let holds = |line: &str| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let number = |hex: &str| usize::from_str_radix(hex, 16).ok();
            range.is_some_and(|(from, to)| {
                number(from).is_some_and(|from| from <= address) && number(to).is_some_and(|to| address < to)
            })
        };
        lines.find(|line| holds(line)).expect("the address is mapped");
        let line = lines
            .find_map(|line| line.strip_prefix("Rss:"))
            .expect("each mapping has a size");
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }
}
