//! The image of a seed, as cloud-init's data source NoCloud reads it: a FAT file system with the label `CIDATA` and the files
//! `meta-data`, `user-data` and, if it is given, `network-config`
//! (<https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>).

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use std::io::{self, Cursor, Write};
use uuid::Uuid;

/// Size of an image in bytes: a Secret holds at most 1 MiB.
const IMAGE_BYTES: usize = 2 << 20;
const LABEL: [u8; 11] = *b"CIDATA     ";

/// What a guest is to find.
pub(super) struct Seed<'a> {
    /// By which cloud-init knows whether it has configured this guest already.
    pub(super) instance: Uuid,
    pub(super) hostname: &'a str,
    pub(super) user_data: &'a [u8],
    pub(super) network_config: Option<&'a [u8]>,
}

/// The bytes of the image: the same for the same seed, whenever and on whichever host it is made, because a guest that
/// moved goes on reading where it was. (The crate's times are fixed ones, since its feature `chrono` is off.)
///
/// # Errors
/// When the files do not fit.
pub(super) fn image(seed: &Seed<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; IMAGE_BYTES];
    let (serial, ..) = seed.instance.as_fields();
    let options = FormatVolumeOptions::new().volume_id(serial).volume_label(LABEL);
    format_volume(Cursor::new(&mut bytes[..]), options)?;
    let file_system = FileSystem::new(Cursor::new(&mut bytes[..]), FsOptions::new())?;
    {
        let root = file_system.root_dir();
        let write = |name: &str, content: &[u8]| {
            let mut file = root.create_file(name)?;
            file.write_all(content)?;
            file.flush()
        };
        write("meta-data", meta_data(seed).as_bytes())?;
        write("user-data", seed.user_data)?;
        if let Some(network_config) = seed.network_config {
            write("network-config", network_config)?;
        }
    }
    file_system.unmount()?;
    Ok(bytes)
}

/// YAML; the quotes keep a name such as `1e3` a text.
fn meta_data(seed: &Seed<'_>) -> String {
    format!("instance-id: \"{}\"\nlocal-hostname: \"{}\"\n", seed.instance, seed.hostname)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn seed<'a>(user_data: &'a [u8], network_config: Option<&'a [u8]>) -> Seed<'a> {
        Seed { instance: Uuid::from_u128(0x1234), hostname: "web-1", user_data, network_config }
    }

    fn files(mut image: Vec<u8>) -> Vec<(String, String)> {
        let file_system = FileSystem::new(Cursor::new(&mut image[..]), FsOptions::new()).unwrap();
        assert_eq!(file_system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
        let root = file_system.root_dir();
        let read = |entry: fatfs::DirEntry<'_, _>| {
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            (entry.file_name(), text)
        };
        root.iter().map(|entry| read(entry.unwrap())).collect()
    }

    #[test]
    fn a_seed_holds_what_cloud_init_looks_for() {
        let meta_data = "instance-id: \"00000000-0000-0000-0000-000000001234\"\nlocal-hostname: \"web-1\"\n";
        let expected = |more: &[(&str, &str)]| {
            let all = [("meta-data", meta_data), ("user-data", "#cloud-config\n")];
            let all = all.iter().chain(more);
            all.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect::<Vec<_>>()
        };
        let plain = image(&seed(b"#cloud-config\n", None)).unwrap();
        assert_eq!(files(plain), expected(&[]));
        let with_network = image(&seed(b"#cloud-config\n", Some(b"version: 2\n"))).unwrap();
        assert_eq!(files(with_network), expected(&[("network-config", "version: 2\n")]));
    }

    #[test]
    fn equal_seeds_are_equal_images_and_others_are_not() {
        let first = image(&seed(b"one", Some(b"two"))).unwrap();
        assert!(first == image(&seed(b"one", Some(b"two"))).unwrap());
        assert!(first != image(&seed(b"one", Some(b"too"))).unwrap());
        // Pinned: an agent of another version makes the same image.
        let sum = first.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(format!("{sum:016x}"), "dae6997265b6e9b8");
    }

    #[test]
    fn all_that_a_secret_can_hold_fits_and_more_is_an_error() {
        let largest = vec![b'#'; 1 << 20];
        assert_eq!(image(&seed(&largest, None)).unwrap().len(), IMAGE_BYTES);
        assert!(image(&seed(&largest, Some(&largest))).is_err());
    }
}
