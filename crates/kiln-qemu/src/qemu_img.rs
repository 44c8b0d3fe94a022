//! qemu-img, through one wrapper. Formats are always given, never guessed: a guest can write anything into the first
//! bytes of a raw disk, a header with the path of a host file among it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use kiln_host::process::{Invocation, ProcessError, find_program};
use kiln_host::wait::Control;
use serde::Deserialize;

use crate::argv::escaped;
use crate::disk::DiskFormat;

mod map;

pub use map::{Extent, Map};

/// The program, found by [`crate::host::Qemu::find`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuImg {
    program: PathBuf,
}

/// What qemu-img says about an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// As qemu-img opened it: a path, or for what is no file an address of its own kind.
    pub filename: PathBuf,
    /// Bytes, as the guest sees it.
    pub virtual_size: u64,
    /// Bytes it takes on the host's disk; absent where the host does not say.
    #[serde(default)]
    pub actual_size: Option<u64>,
    pub format: String,
    #[serde(default)]
    pub encrypted: bool,
    /// As written in the image.
    #[serde(default)]
    pub backing_filename: Option<PathBuf>,
    #[serde(default)]
    pub backing_filename_format: Option<String>,
    #[serde(default)]
    format_specific: Option<FormatSpecific>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: Option<FormatData>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    #[serde(default)]
    data_file: Option<PathBuf>,
    #[serde(default)]
    extents: Vec<serde_json::Value>,
}

impl ImageInfo {
    /// A file beside the image itself that its contents come from: opening such an image opens that file, with our
    /// rights.
    pub fn other_file(&self) -> Option<&Path> {
        self.backing_filename.as_deref().or_else(|| self.data_file())
    }

    /// The file that has a qcow2's clusters where the image itself has not.
    pub fn data_file(&self) -> Option<&Path> {
        self.format_specific.as_ref()?.data.as_ref()?.data_file.as_deref()
    }

    /// Whether the image is made of several files (VMDK descriptors).
    pub fn is_split(&self) -> bool {
        let data = self.format_specific.as_ref().and_then(|specific| specific.data.as_ref());
        data.is_some_and(|data| data.extents.len() > 1)
    }
}

/// Why qemu-img gave no result.
#[derive(Debug, thiserror::Error)]
pub enum QemuImgError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot read what qemu-img says about {}", .path.display())]
    Answer { path: PathBuf, source: serde_json::Error },
}

impl QemuImgError {
    /// Whether qemu-img found no room where it wrote.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Process(ProcessError::Failed { stderr, .. }) if stderr.contains("No space left on device"))
    }

    pub fn interrupted(&self) -> Option<kiln_host::wait::Interrupted> {
        match self {
            Self::Process(error) => error.interrupted(),
            Self::Answer { .. } => None,
        }
    }
}

impl QemuImg {
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// The qemu-img of `search_path` (the form of `PATH`), if there is one.
    pub fn find(search_path: &OsStr) -> Option<Self> {
        find_program("qemu-img", search_path).map(Self::new)
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    fn command(&self, name: &str) -> Invocation {
        // Its words are read: by people, and here for a full disk.
        Invocation::new(&self.program).env("LC_ALL", "C").arg(name)
    }

    pub fn info(&self, path: &Path, format: DiskFormat) -> Result<ImageInfo, QemuImgError> {
        let output =
            self.command("info").args(["-f", format.name(), "--output=json"]).arg(path).run_blocking()?;
        serde_json::from_slice(&output.stdout)
            .map_err(|source| QemuImgError::Answer { path: path.to_owned(), source })
    }

    /// What [`QemuImg::info`] says, of the image and of all that lies below it, from the top down.
    pub async fn info_of_chain(
        &self,
        path: &Path,
        format: DiskFormat,
        control: &Control,
    ) -> Result<Vec<ImageInfo>, QemuImgError> {
        let command = self.command("info").args(["-f", format.name(), "--backing-chain", "--output=json"]);
        let output = command.arg(path).run(control).await?;
        serde_json::from_slice(&output.stdout)
            .map_err(|source| QemuImgError::Answer { path: path.to_owned(), source })
    }

    /// Where the bytes of an image and of all that lies below it are.
    pub async fn map(&self, path: &Path, format: DiskFormat, control: &Control) -> Result<Map, QemuImgError> {
        let command = self.command("map").args(["-f", format.name(), "--output=json"]).arg(path);
        map::read(&command, path, control).await
    }

    /// Makes a qcow2 file over `backing`, which is recorded as an absolute path with its format.
    pub fn create_overlay(
        &self,
        path: &Path,
        backing: &Path,
        backing_format: DiskFormat,
        virtual_size: u64,
    ) -> Result<(), QemuImgError> {
        self.create_qcow2(&[], path, (backing, backing_format), virtual_size)
    }

    /// The same, without a look at `backing`, which a machine may be writing or which is not there yet.
    pub fn create_layer(
        &self,
        path: &Path,
        backing: &Path,
        backing_format: DiskFormat,
        virtual_size: u64,
    ) -> Result<(), QemuImgError> {
        self.create_qcow2(&["-u"], path, (backing, backing_format), virtual_size)
    }

    fn create_qcow2(
        &self,
        more: &[&str],
        path: &Path,
        (backing, format): (&Path, DiskFormat),
        virtual_size: u64,
    ) -> Result<(), QemuImgError> {
        let mut option = std::ffi::OsString::from("backing_file=");
        option.push(escaped(backing));
        // Clusters as large as a guest's file system blocks: a block that the guest trims is gone from the file,
        // whatever lies beside it. With the default of 64 KiB a small deleted file would stay in the image's bytes.
        option.push(format!(",backing_fmt={},cluster_size=4096", format.name()));
        self.command("create")
            .args(["-q", "-f", "qcow2"])
            .args(more)
            .arg("-o")
            .arg(option)
            .arg(path)
            .arg(virtual_size.to_string())
            .run_blocking()?;
        Ok(())
    }

    /// Changes an image's virtual size; never shrinks.
    pub fn resize(&self, path: &Path, format: DiskFormat, virtual_size: u64) -> Result<(), QemuImgError> {
        self.command("resize")
            .args(["-q", "-f", format.name()])
            .arg(path)
            .arg(virtual_size.to_string())
            .run_blocking()?;
        Ok(())
    }

    /// Makes `to` of the contents of `from` and everything below it. `progress` is told hundredths of a percent.
    pub async fn convert(
        &self,
        from: (&Path, DiskFormat),
        to: (&Path, DiskFormat),
        progress: impl FnMut(u16) + Send + 'static,
        control: &Control,
    ) -> Result<(), QemuImgError> {
        let command = self
            .command("convert")
            .args(["-p", "-f", from.1.name(), "-O", to.1.name()])
            .arg(from.0)
            .arg(to.0);
        self.converting(command, progress, control).await
    }

    /// Like [`QemuImg::convert`] into a raw file that exists, is large enough, and reads as zeros: holes stay holes.
    pub async fn convert_into_zeros(
        &self,
        from: (&Path, DiskFormat),
        to: &Path,
        progress: impl FnMut(u16) + Send + 'static,
        control: &Control,
    ) -> Result<(), QemuImgError> {
        // No lock by QEMU: the file is new and ours, and is locked by its publisher in a way that some network file
        // systems cannot tell from QEMU's own.
        let mut target =
            std::ffi::OsString::from("driver=raw,file.driver=file,file.locking=off,file.filename=");
        target.push(escaped(to));
        let command = self
            .command("convert")
            .args(["-p", "-n", "--target-is-zero", "-W", "-f", from.1.name(), "--target-image-opts"])
            .arg(from.0)
            .arg(target);
        self.converting(command, progress, control).await
    }

    async fn converting(
        &self,
        command: Invocation,
        mut progress: impl FnMut(u16) + Send + 'static,
        control: &Control,
    ) -> Result<(), QemuImgError> {
        let mut text = String::new();
        let watch = move |bytes: &[u8]| {
            text.push_str(&String::from_utf8_lossy(bytes));
            if let Some(done) = last_progress(&text) {
                progress(done);
            }
            // Only what may be the beginning of the next report is kept.
            let rest = text.rfind('\r').map_or(0, |end| end + 1);
            text.drain(..rest);
        };
        command.run_watched(control, watch).await?;
        Ok(())
    }

    /// Whether two images read the same; a longer one must end in zeros.
    pub async fn is_equal(
        &self,
        one: (&Path, DiskFormat),
        other: (&Path, DiskFormat),
        control: &Control,
    ) -> Result<bool, QemuImgError> {
        let command =
            self.command("compare").args(["-f", one.1.name(), "-F", other.1.name()]).arg(one.0).arg(other.0);
        match command.run(control).await {
            Ok(_) => Ok(true),
            Err(ProcessError::Failed { code: Some(1), .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks for broken and leaked clusters. Only for formats that have them: qcow2, vmdk, vhdx, vdi.
    pub async fn check(
        &self,
        path: &Path,
        format: DiskFormat,
        control: &Control,
    ) -> Result<(), QemuImgError> {
        self.command("check").args(["-q", "-f", format.name()]).arg(path).run(control).await?;
        Ok(())
    }
}

/// qemu-img writes `    (12.34/100%)` and a carriage return, again and again.
fn last_progress(text: &str) -> Option<u16> {
    text.split('\r').rev().find_map(|report| {
        let (whole, hundredths) = report.trim().strip_prefix('(')?.strip_suffix("/100%)")?.split_once('.')?;
        if hundredths.len() != 2 {
            return None;
        }
        whole.parse::<u16>().ok()?.checked_mul(100)?.checked_add(hundredths.parse().ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_qemu_img_writes() {
        for (text, expected) in [
            ("", None),
            ("    (0.00/100%)\r", Some(0)),
            ("    (0.00/100%)\r    (12.34/100%)\r", Some(1234)),
            ("    (99.99/100%)\r    (100.", Some(9999)),
            ("    (100.00/100%)\r", Some(10000)),
            ("(700.00/100%)(", None),
            ("warning: (1/100%)\r", None),
        ] {
            assert_eq!(last_progress(text), expected, "{text:?}");
        }
    }
}
