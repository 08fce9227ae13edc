//! The network between guests: an Ethernet hub in this process. No frame is seen by the host's own network.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest Ethernet frame; guests have an MTU of 1,500.
const FRAME_MAX: usize = 2 << 10;
/// How long a frame waits for a guest that is slow to read; then it is lost, as on a wire.
const SEND_WAIT: Duration = Duration::from_millis(100);

type Ports = Mutex<BTreeMap<String, Arc<UnixDatagram>>>;

/// Hands every frame to all other guests.
#[derive(Clone, Default)]
pub(crate) struct Wire {
    ports: Arc<Ports>,
    heard: Arc<Mutex<Heard>>,
}

/// What is listened for, and what was heard.
#[derive(Clone, Default, Debug)]
pub(crate) struct Heard {
    text: Vec<u8>,
    pub(crate) frames: usize,
    /// Frames with the text in them.
    pub(crate) with: usize,
}

impl Wire {
    /// Plugs a guest in; answers the end that QEMU is given.
    pub(crate) fn plug(&self, name: &str) -> io::Result<UnixDatagram> {
        let (ours, theirs) = UnixDatagram::pair()?;
        ours.set_write_timeout(Some(SEND_WAIT))?;
        let (ours, wire, me) = (Arc::new(ours), self.clone(), name.to_owned());
        self.ports().insert(me.clone(), Arc::clone(&ours));
        std::thread::spawn(move || {
            let mut frame = [0; FRAME_MAX];
            // It ends when the plug is pulled, which is seen as a frame of nothing.
            while let Ok(length @ 1..) = ours.recv(&mut frame) {
                wire.hear(&frame[..length]);
                let others: Vec<_> = wire
                    .ports()
                    .iter()
                    .filter(|(name, _)| **name != me)
                    .map(|(_, port)| Arc::clone(port))
                    .collect();
                for port in others {
                    // A guest that is off hears nothing.
                    let _ = port.send(&frame[..length]);
                }
            }
        });
        Ok(theirs)
    }

    /// Pulls a guest's plug.
    pub(crate) fn pull(&self, name: &str) {
        if let Some(port) = self.ports().remove(name) {
            let _ = port.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Listens for a text from now on.
    pub(crate) fn listen(&self, text: &str) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Heard {
            text: text.into(),
            ..Heard::default()
        };
    }

    /// What was heard since.
    pub(crate) fn heard(&self) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hear(&self, frame: &[u8]) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !heard.text.is_empty() {
            heard.frames += 1;
            heard.with += usize::from(frame.windows(heard.text.len()).any(|w| w == heard.text));
        }
    }

    fn ports(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<UnixDatagram>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
