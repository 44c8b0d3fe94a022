//! The lab's c:\ in a finished disk, read without booting or mounting it: `sfdisk` finds the partition, ntfs-3g's
//! tools its files, `hivexget` what a registry hive says. None of them knows of Kiln.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{command, finish, output};

/// GPT type "Basic data partition".
const BASIC_DATA: &str = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7";

/// One NTFS volume, copied out of its disk.
#[derive(Debug)]
pub struct Ntfs {
    volume: PathBuf,
}

impl Ntfs {
    /// The only such partition of a raw disk or fixed VHD. Its bytes are copied (sparsely) into `folder`.
    pub fn of_disk(disk: &Path, folder: &Path) -> Self {
        let table: Value =
            serde_json::from_str(&output("sfdisk", ["--json".as_ref(), disk.as_os_str()])).unwrap();
        let partitions = table["partitiontable"]["partitions"].as_array().unwrap();
        let [partition] = partitions.iter().filter(|one| one["type"] == BASIC_DATA).collect::<Vec<_>>()[..]
        else {
            panic!("not one basic data partition: {table:#}")
        };
        let bytes = |name: &str| partition[name].as_u64().unwrap() * 512;
        let volume = folder.join("volume.ntfs");
        output(
            "dd",
            [
                format!("if={}", disk.display()),
                format!("of={}", volume.display()),
                format!("skip={}", bytes("start")),
                format!("count={}", bytes("size")),
                "bs=1M".to_owned(),
                "iflag=skip_bytes,count_bytes".to_owned(),
                "conv=sparse".to_owned(),
                "status=none".to_owned(),
            ],
        );
        Self { volume }
    }

    /// The bytes of a file; `None` where there is none.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let mut ntfscat = command("ntfscat");
        let ended = finish(ntfscat.arg(&self.volume).arg(path), crate::disk::LIMIT);
        ended.status.success().then_some(ended.stdout)
    }

    /// A text; nothing where there is no such file.
    pub fn text(&self, path: &str) -> String {
        String::from_utf8_lossy(&self.read(path).unwrap_or_default()).into_owned()
    }

    /// Names in a folder.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let listed = output("ntfsls", ["-p".as_ref(), folder.as_ref(), self.volume.as_os_str()]);
        listed.lines().filter(|name| !matches!(*name, "." | "..")).map(str::to_owned).collect()
    }

    /// A value of a hive below `Windows/System32/config`, as `hivexget` prints it.
    pub fn registry(&self, hive: &str, key: &str, value: &str) -> Option<String> {
        let file = self.volume.with_file_name(format!("{hive}.hive"));
        std::fs::write(&file, self.read(&format!("Windows/System32/config/{hive}")).unwrap()).unwrap();
        let mut hivexget = command("hivexget");
        let ended = finish(hivexget.arg(&file).args([key, value]), crate::disk::LIMIT);
        ended.status.success().then(|| ended.text().trim().to_owned())
    }
}
