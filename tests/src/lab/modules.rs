//! Kernel modules with what they need, in the order in which they load.
//!
//! depmod is not used: it runs when the kernel's package is installed, and the lab only unpacks it. The facts stand in
//! each module's `.modinfo` section as `name=value` strings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::archive::Archive;

/// All modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    /// `/lib/modules/<release>` as it is inside the package.
    folder: PathBuf,
    release: String,
    /// Name with underscores → file below `folder`.
    files: BTreeMap<String, PathBuf>,
}

/// What a module says of itself.
#[derive(Debug, Default, PartialEq)]
struct Info {
    depends: Vec<String>,
    aliases: Vec<String>,
}

impl Modules {
    /// Lists the modules of an unpacked kernel package.
    ///
    /// # Errors
    /// When the package has no folder of modules.
    pub fn of(package: &Path) -> Result<Self> {
        let above = package.join("lib/modules");
        let folder = std::fs::read_dir(&above)
            .with_context(|| format!("{} is not a kernel package", package.display()))?
            .next()
            .with_context(|| format!("{} is empty", above.display()))??
            .path();
        let release = folder.file_name().context("a folder without a name")?.to_string_lossy().into_owned();
        let mut files = BTreeMap::new();
        find(&folder, &mut files)?;
        Ok(Self { folder, release, files })
    }

    /// Names of the modules that lie in this folder, given from `kernel/` on, or below it.
    pub fn below(&self, folder: &str) -> impl Iterator<Item = &str> {
        let folder = self.folder.join(folder);
        self.files.iter().filter(move |(_, file)| file.starts_with(&folder)).map(|(name, _)| name.as_str())
    }

    /// Adds the modules `loaded` and `available`, with what they need, to an archive, and returns the paths of the first
    /// and what they need in the order in which they load. The others are found by modprobe, which the kernel itself runs.
    ///
    /// Modules that this kernel has built in are left out.
    ///
    /// # Errors
    /// When a module cannot be read, or is none.
    pub fn add_to(&self, archive: &mut Archive, loaded: &[&str], available: &[&str]) -> Result<Vec<String>> {
        let mut infos = BTreeMap::new();
        let mut order = Vec::new();
        for name in loaded {
            self.visit(&name.replace('-', "_"), &mut infos, &mut order)?;
        }
        let first = order.len();
        for name in available {
            self.visit(&name.replace('-', "_"), &mut infos, &mut order)?;
        }
        let root = format!("/usr/lib/modules/{}", self.release);
        let (mut dependencies, mut aliases) = (String::new(), String::new());
        for name in &order {
            let file = &self.files[name];
            archive.file(&format!("{root}/{}", self.relative(file)), file)?;
            let needed: Vec<_> = infos[name].depends.iter().filter_map(|name| self.files.get(name)).collect();
            dependencies.push_str(&format!("{}:", self.relative(file)));
            for file in needed {
                dependencies.push_str(&format!(" {}", self.relative(file)));
            }
            dependencies.push('\n');
            for alias in &infos[name].aliases {
                aliases.push_str(&format!("alias {alias} {name}\n"));
            }
        }
        archive.bytes(&format!("{root}/modules.dep"), false, dependencies);
        archive.bytes(&format!("{root}/modules.alias"), false, aliases);
        Ok(order[..first].iter().map(|name| format!("{root}/{}", self.relative(&self.files[name]))).collect())
    }

    /// Puts a module behind everything that it needs.
    fn visit(&self, name: &str, infos: &mut BTreeMap<String, Info>, order: &mut Vec<String>) -> Result<()> {
        let Some(file) = self.files.get(name) else { return Ok(()) };
        if infos.contains_key(name) {
            return Ok(());
        }
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let info = modinfo(&bytes).with_context(|| format!("{} is not a kernel module", file.display()))?;
        let depends: BTreeSet<_> = info.depends.iter().cloned().collect();
        infos.insert(name.to_owned(), info);
        for needed in &depends {
            self.visit(needed, infos, order)?;
        }
        order.push(name.to_owned());
        Ok(())
    }

    fn relative(&self, file: &Path) -> String {
        file.strip_prefix(&self.folder).unwrap_or(file).to_string_lossy().into_owned()
    }
}

fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(stem) = path.file_stem()
        {
            files.insert(stem.to_string_lossy().replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Reads the `.modinfo` section of a 64-bit little-endian ELF file; `None` when the file has none.
fn modinfo(elf: &[u8]) -> Option<Info> {
    let section = section(elf, b".modinfo")?;
    let mut info = Info::default();
    for entry in section.split(|byte| *byte == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else { continue };
        if let Some(names) = entry.strip_prefix("depends=") {
            info.depends =
                names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect();
        } else if let Some(alias) = entry.strip_prefix("alias=") {
            info.aliases.push(alias.to_owned());
        }
    }
    Some(info)
}

/// Offsets and sizes are those of Elf64_Ehdr and Elf64_Shdr in the System V ABI.
fn section<'elf>(elf: &'elf [u8], name: &[u8]) -> Option<&'elf [u8]> {
    elf.strip_prefix(b"\x7fELF\x02\x01")?;
    let word = |at: usize| Some(usize::from(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?)));
    let long = |at: usize| usize::try_from(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?)).ok();
    let (table, entry_size, count, names_index) = (long(0x28)?, word(0x3a)?, word(0x3c)?, word(0x3e)?);
    let content = |index: usize| {
        let header = table + index * entry_size;
        elf.get(long(header + 0x18)?..)?.get(..long(header + 0x20)?)
    };
    let names = content(names_index)?;
    (0..count).find_map(|index| {
        let header = table + index * entry_size;
        let at = usize::try_from(u32::from_le_bytes(elf.get(header..header + 4)?.try_into().ok()?)).ok()?;
        let rest = names.get(at..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        if &rest[..end] == name { content(index) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of three sections: none, the names, and .modinfo.
    fn module(info: &str) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut elf = vec![0; 0x40];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names_at = elf.len();
        elf.extend_from_slice(names);
        let info_at = elf.len();
        elf.extend_from_slice(info.as_bytes());
        let table = elf.len();
        for (name, at, size) in [(0, 0, 0), (1, names_at, names.len()), (11, info_at, info.len())] {
            let mut header = [0; 0x40];
            header[..4].copy_from_slice(&u32::to_le_bytes(name));
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        elf[0x3a..0x40].copy_from_slice(&[0x40, 0, 3, 0, 1, 0]);
        elf
    }

    fn package(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("lib/modules/6.1.0-lab/kernel/drivers");
        std::fs::create_dir_all(&kernel).unwrap();
        for (name, info) in modules {
            std::fs::write(kernel.join(format!("{name}.ko")), module(info)).unwrap();
        }
        folder
    }

    #[test]
    fn modules_load_after_what_they_need() {
        let package = package(&[
            ("a-top", "alias=net-pf-99\0depends=middle,base\0"),
            ("middle", "depends=base\0"),
            ("base", "depends=\0"),
        ]);
        let modules = Modules::of(package.path()).unwrap();
        let mut archive = Archive::new();
        let order = modules.add_to(&mut archive, &["a-top", "built-in"], &[]).unwrap();
        let names: Vec<_> = order.iter().filter_map(|path| path.rsplit('/').next()).collect();
        assert_eq!(names, ["base.ko", "middle.ko", "a-top.ko"]);
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("kernel/drivers/a-top.ko: kernel/drivers/middle.ko kernel/drivers/base.ko\n"));
        assert!(text.contains("alias net-pf-99 a_top\n"));
    }

    #[test]
    fn available_modules_are_packed_and_not_loaded() {
        let package = package(&[("base", "depends=\0"), ("extra", "depends=base\0")]);
        let modules = Modules::of(package.path()).unwrap();
        let mut archive = Archive::new();
        let order = modules.add_to(&mut archive, &[], &["extra"]).unwrap();
        assert!(order.is_empty());
        assert!(archive.contains("/lib/modules/6.1.0-lab/kernel/drivers/extra.ko"));
        assert!(archive.contains("/lib/modules/6.1.0-lab/kernel/drivers/base.ko"));
    }

    #[test]
    fn a_file_that_is_no_module_is_named_and_never_a_panic() {
        let package = package(&[]);
        let path = package.path().join("lib/modules/6.1.0-lab/kernel/drivers/broken.ko");
        for length in 0..0x60 {
            std::fs::write(&path, &module("depends=\0")[..length]).unwrap();
            let modules = Modules::of(package.path()).unwrap();
            let error = modules.add_to(&mut Archive::new(), &["broken"], &[]).unwrap_err();
            assert!(format!("{error:#}").contains("broken.ko"), "{error:#}");
        }
    }
}
