//! What of a file is mapped into this process becomes its own.
//!
//! ONNX Runtime maps weights privately: nothing that it would write to them reached the file. But what others write to the file reaches
//! the weights, and where they cut it off, whoever reads them is killed, even pages that were copied before. So memory with the same bytes
//! takes the place of each mapping, at the same address.

use std::ffi::c_void;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mremap_fixed, munmap};

/// Puts memory of its own in the place of all private mappings that this file has. Nobody may use them meanwhile. Fails where the
/// kernel does not tell mappings by the file's path.
pub(super) fn detach(file: &Path) -> io::Result<()> {
    let source = File::open(file)?;
    let probe = Probe::new(&source)?;
    let found = mappings(&fs::read_to_string("/proc/self/maps")?, file);
    if !found.iter().any(|mapping| mapping.addresses.contains(&probe.0.addr())) {
        return Err(ErrorKind::Unsupported.into());
    }
    found.into_iter().try_for_each(|mapping| replace(&mapping, &source))
}

/// A mapping of a file that is sure to be there.
struct Probe(*mut c_void);

#[allow(unsafe_code)] // there are no safe functions for it
impl Probe {
    fn new(file: &File) -> io::Result<Self> {
        // SAFETY: a new mapping, which is never read.
        Ok(Self(unsafe { mmap(ptr::null_mut(), 1, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE, file, 0) }?))
    }
}

#[allow(unsafe_code)] // there are no safe functions for it
impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: it is ours alone, and still where it was made.
        let _ = unsafe { munmap(self.0, 1) };
    }
}

/// A mapping of a file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    addresses: Range<usize>,
    /// Where in the file it begins.
    offset: u64,
}

#[allow(unsafe_code)] // there are no safe functions for it
fn replace(mapping: &Mapping, source: &File) -> io::Result<()> {
    let length = mapping.addresses.len();
    // SAFETY: new memory, at an address that nobody uses.
    let own =
        unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }?;
    // SAFETY: so long, and known to nobody else yet.
    let bytes = unsafe { std::slice::from_raw_parts_mut(own.cast::<u8>(), length) };
    let place = ptr::with_exposed_provenance_mut(mapping.addresses.start);
    let moved = fill(bytes, source, mapping.offset).and_then(|()| {
        // SAFETY: as long as what was there, with the same bytes; whoever gives it back does so by its address.
        unsafe { mremap_fixed(own, length, length, MremapFlags::MAYMOVE, place) }?;
        Ok(())
    });
    if moved.is_err() {
        // SAFETY: it is still where it was made, and not used any more.
        unsafe { munmap(own, length) }?;
    }
    moved
}

/// Reads what is there; the last page may go on behind the file's end.
fn fill(mut bytes: &mut [u8], source: &File, mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match source.read_at(bytes, offset) {
            Ok(0) => break,
            Ok(read) => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The private mappings of a file that may be written to, as the kernel tells them: "7f00-7f40 rw-p 00001000 fe:01 1234  /file".
fn mappings(maps: &str, file: &Path) -> Vec<Mapping> {
    let of_line = |line: &str| {
        let (addresses, rest) = line.split_once(' ')?;
        let mut fields = rest.splitn(5, ' ');
        let (access, offset) = (fields.next()?, fields.next()?);
        // A file that was replaced since is mapped all the same.
        let path = fields.nth(2)?.trim_start();
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let (start, end) = addresses.split_once('-')?;
        let addresses = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let offset = u64::from_str_radix(offset, 16).ok()?;
        (access == "rw-p" && Path::new(path) == file).then_some(Mapping { addresses, offset })
    };
    maps.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_a_file_are_found_by_its_path() {
        let maps = "7f00-7f40 rw-p 00001000 fe:01 1234                       /models/a b.onnx\n\
                    7f40-7f80 r--p 00000000 fe:01 1234                       /models/a b.onnx\n\
                    8000-8040 rw-p 00000000 fe:01 1235                       /models/a b.onnx (deleted)\n\
                    9000-9040 rw-p 00000000 00:00 0 \n\
                    a000-a040 rw-p 00000000 fe:01 1236                       /models/other\n\
                    b000-b040 rw-p 00000000 00:00 0                          [heap]\n";
        let found =
            [(0x7f00..0x7f40, 0x1000), (0x8000..0x8040, 0)].map(|(addresses, offset)| Mapping { addresses, offset });
        assert_eq!(mappings(maps, Path::new("/models/a b.onnx")), found);
        assert_eq!(mappings(maps, Path::new("/models/b.onnx")), []);
    }

    #[test]
    #[allow(unsafe_code)] // it is about memory that others change
    fn what_was_mapped_stays_as_it_was_when_the_file_changes() {
        const SIZE: usize = 3 << 12;
        let file = tempfile::NamedTempFile::new().unwrap();
        // The last page is not full.
        file.as_file().write_all_at(&vec![0; 1 << 12], 0).unwrap();
        file.as_file().write_all_at(&vec![1; SIZE - 1], 1 << 12).unwrap();
        let path = file.path().canonicalize().unwrap();
        let map = || {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping, which nobody else knows.
            unsafe { mmap(std::ptr::null_mut(), SIZE, access, MapFlags::PRIVATE, file.as_file(), 1 << 12) }.unwrap()
        };
        let before = map();
        detach(&path).unwrap();
        let after = map();
        file.as_file().write_all_at(&vec![2; 4 * SIZE], 0).unwrap();
        // SAFETY: both are mapped, and within the file.
        let read = |start: *mut std::ffi::c_void, at: usize| unsafe { start.cast::<u8>().add(at).read_volatile() };
        assert_eq!([0, 5000, SIZE - 2].map(|at| read(before, at)), [1; 3]);
        assert_eq!(read(after, 0), 2, "what is not detached changes");
        file.as_file().set_len(0).unwrap();
        assert_eq!(read(before, SIZE - 2), 1, "and is still there when the file is cut off");
        for start in [before, after] {
            // SAFETY: it is not used any more.
            unsafe { munmap(start, SIZE) }.unwrap();
        }
    }
    #[test]
    fn a_path_that_the_kernel_does_not_tell_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        fs::write(&file, [1; 10]).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(detach(&link).unwrap_err().kind(), ErrorKind::Unsupported);
        detach(&file.canonicalize().unwrap()).unwrap();
    }
}
