//! Where the driver of volumes and the kubelet meet.

use super::{listen, text};
use crate::config::SOCKET_BYTES_MAX;
use crate::config::problem::{Fault, Place, Problems};
use crate::config::volume::{Volume, VolumeSection};

/// Nothing where there is no driver.
pub(super) fn validate(section: &VolumeSection, place: &Place<'_>, problems: &mut Problems) -> Option<Volume> {
    let kubelet = problems.take(&place.field("kubelet"), text::absolute(&section.kubelet));
    let at = place.field("socket");
    let socket = problems.take(&at, listen::socket(section.socket.as_deref()?));
    let volume = Volume { socket, kubelet };
    let bytes = volume.registration().as_os_str().len();
    if bytes > SOCKET_BYTES_MAX {
        let message = format!("leads to a socket with {bytes} bytes, and the kernel takes {SOCKET_BYTES_MAX}");
        problems.add(&place.field("kubelet"), Fault::new(message, "write a shorter path"));
    }
    if volume.socket.starts_with(volume.kubelet.join("pods")) || volume.socket == volume.registration() {
        let fault = Fault::new("lies where the kubelet keeps other things", "write a path in a folder of its own");
        problems.add(&at, fault);
    }
    Some(volume)
}
