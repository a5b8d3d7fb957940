//! The lab as a whole; slow, because it boots real Xen hosts.

use super::*;

#[tokio::test]
#[ignore = "boots two Xen hosts"]
async fn lab_boots_two_hosts_that_reach_each_other() {
    let lab = Lab::up(&LabOptions::new(format!("test-{}", std::process::id()))).await.unwrap();
    let (one, two) = (lab.host("xen-1").unwrap(), lab.host("xen-2").unwrap());
    for host in [&one, &two] {
        assert!(host.check("xl info").await.unwrap().contains("virt_caps              : pv hvm hap"));
    }
    one.check("ping -c 1 xen-2").await.unwrap();
    two.check("ping -c 1 xen-1").await.unwrap();

    one.check("echo written by one | dd of=/dev/lab/lun conv=fsync,notrunc").await.unwrap();
    assert!(two.check("head -c 14 /dev/lab/lun").await.unwrap() == "written by one", "both see one disk");

    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    one.push(&bytes, "/srv/kubexen/some folder/file", 0o600).await.unwrap();
    one.check("sync").await.unwrap();
    one.power_off().await.unwrap();
    assert!(!one.is_on());
    one.power_on().await.unwrap();
    assert_eq!(
        one.pull("/srv/kubexen/some folder/file").await.unwrap(),
        bytes,
        "the host's own disk keeps its data"
    );

    let folder = lab.folder().to_owned();
    drop((one, two, lab));
    assert!(!folder.exists());
}
