//! Hardware addresses of interfaces that were not given one.

use uuid::Uuid;

/// Addresses tried before a machine has to do with one that another has too.
const ROUNDS: u32 = 16;

/// The address of a machine's interface: the same for the same machine and name, and none that `taken` knows.
///
/// It is in `00:16:3e`, which the IEEE has assigned to Xen, and in the lower half of it, as Xen's own tools choose
/// theirs (`libxl__random_mac` in tools/libs/light clears the highest bit of the fourth byte).
pub(crate) fn derive(machine_uid: &str, interface: &str, taken: impl Fn(&str) -> bool) -> String {
    let machine = Uuid::parse_str(machine_uid).unwrap_or_default();
    let mut address = candidate(machine, interface, 0);
    for round in 1..ROUNDS {
        if !taken(&address) {
            break;
        }
        address = candidate(machine, interface, round);
    }
    address
}

fn candidate(machine: Uuid, interface: &str, round: u32) -> String {
    let name = if round == 0 { interface.to_owned() } else { format!("{interface}/{round}") };
    let hash = Uuid::new_v5(&machine, name.as_bytes());
    let [first, second, third, ..] = *hash.as_bytes();
    format!("00:16:3e:{:02x}:{second:02x}:{third:02x}", first & 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";

    #[test]
    fn an_address_is_stable_and_another_interface_has_another() {
        let first = derive(MACHINE, "eth0", |_| false);
        assert_eq!(first, derive(MACHINE, "eth0", |_| false));
        assert_ne!(first, derive(MACHINE, "eth1", |_| false));
        assert!(first.starts_with("00:16:3e:") && first.len() == 17, "{first}");
        assert!(u8::from_str_radix(&first[9..11], 16).unwrap() < 0x80, "{first}");
    }

    #[test]
    fn a_taken_address_is_avoided() {
        let first = derive(MACHINE, "eth0", |_| false);
        let second = derive(MACHINE, "eth0", |address| address == first);
        assert_ne!(first, second);
    }
}
