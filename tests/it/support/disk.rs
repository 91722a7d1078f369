//! A small disk that can be filled up: a file system in memory, mounted for the test.

use std::fs::File;
use std::io::ErrorKind;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// Room for a SQLite database with its log, or for a few files.
const SIZE: &str = "16m";

/// A mounted disk. Gone with the test.
pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts a disk of its own at `folder`.
    pub fn mount(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let options = format!("size={SIZE},mode=0700");
        let mut mount = Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", &options, "longshore-test"]).arg(folder);
        let output = output.output().expect("`mount` is installed");
        assert!(
            output.status.success(),
            "this test fills up a disk, and needs to mount a small one: run the tests as root, in a container \
             with `--cap-add SYS_ADMIN` ({})",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Self { folder: folder.to_path_buf() }
    }

    /// Takes all the room that is left, but for so many bytes.
    pub fn fill_but(&self, left: u64) {
        let path = self.folder.join("filler");
        let mut filler = File::options().create(true).append(true).open(path).unwrap();
        let page = [0u8; 4096];
        loop {
            match filler.write_all(&page) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
        let length = filler.metadata().unwrap().len();
        filler.set_len(length.saturating_sub(left)).unwrap();
    }

    /// Gives back what was taken.
    pub fn free(&self) {
        std::fs::remove_file(self.folder.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there loses nothing that the test cares for.
        let unmounted = Command::new("umount").arg("-l").arg(&self.folder).status();
        assert!(
            unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(),
            "the small disk was not unmounted"
        );
    }
}
