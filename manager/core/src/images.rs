//! Which nodes hold which images, as far as they told; what a reference means, and whom to ask for it.

use std::collections::{BTreeMap, BTreeSet};

use model::spec::{IMAGE_MAX, IMAGE_NAMES_MAX, IMAGES_HELD_MAX, ImageId, ImageRef};
use model::{NodeId, Timestamp};

/// Most nodes named to one that asks for an image.
pub const SOURCES_MAX: usize = 16;
/// Fewest digits of an id that stand for the whole, as on the nodes.
const DIGITS_MIN: usize = 4;
/// Most bytes of names of the whole cluster: a thousand nodes that each hold a thousand images stay below it.
const NAMES_BYTES_MAX: usize = 256 << 20;

/// An image a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldImage {
    /// Which.
    pub id: ImageId,
    /// When it was made.
    pub created: Timestamp,
    /// Names that lead to it on that node, as [`ImageRef::key`] writes them.
    pub names: Vec<String>,
}

/// Why a report is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    /// One node names too much.
    #[error(
        "the node reports more than {IMAGES_HELD_MAX} images or {IMAGE_NAMES_MAX} names, or a name longer than {IMAGE_MAX} bytes"
    )]
    Node,
    /// All together name too much.
    #[error(
        "the nodes report more than {NAMES_BYTES_MAX} bytes of names of images: remove images that nobody needs"
    )]
    Cluster,
}

/// What a reference means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The one image.
    pub id: ImageId,
    /// Who holds it, under whatever name.
    pub nodes: BTreeSet<NodeId>,
}

/// What every node holds. Not replicated: each leader hears it anew.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    nodes: BTreeMap<NodeId, Holdings>,
}

#[derive(Debug, Clone, Default)]
struct Holdings {
    images: BTreeMap<ImageId, Timestamp>,
    names: BTreeMap<String, ImageId>,
    bytes: usize,
}

impl Inventory {
    /// Takes all that a node holds, in place of what it reported before.
    ///
    /// # Errors
    /// [`InventoryError`] when it is too much; then the earlier report stays.
    pub fn report(&mut self, node: NodeId, images: Vec<HeldImage>) -> Result<(), InventoryError> {
        let names = images.iter().map(|i| i.names.len()).sum::<usize>();
        let long = |i: &HeldImage| i.names.iter().any(|n| n.len() > IMAGE_MAX);
        if images.len() > IMAGES_HELD_MAX || names > IMAGE_NAMES_MAX || images.iter().any(long) {
            return Err(InventoryError::Node);
        }
        let mut holdings = Holdings::default();
        for image in images {
            holdings.images.insert(image.id, image.created);
            for name in image.names {
                holdings.bytes += name.len();
                holdings.names.insert(name, image.id);
            }
        }
        let others: usize = (self.nodes.iter())
            .filter(|(id, _)| **id != node)
            .map(|(_, h)| h.bytes)
            .sum();
        if others + holdings.bytes > NAMES_BYTES_MAX {
            return Err(InventoryError::Cluster);
        }
        self.nodes.insert(node, holdings);
        Ok(())
    }

    /// Whether a node has reported.
    pub fn has_heard(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    /// Forgets the nodes that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|id, _| keep(*id));
    }

    /// What a reference means among the nodes that are `heard` of, and who of them has it.
    ///
    /// A digest or an id means that image. Where nodes hold different images under one name, it means the one that was
    /// made last, and among equals the one with the largest id, so that every manager answers alike: a name follows the
    /// newest build, wherever it was loaded, and a node that was forgotten when the others were given the new one does
    /// not bring the old one back. A name that no node has may be the beginning of one id.
    pub fn resolve(&self, reference: &str, heard: impl Fn(NodeId) -> bool) -> Option<Found> {
        let parts = ImageRef::parse(reference);
        let heard_of = || self.nodes.iter().filter(|(node, _)| heard(**node));
        let id = match parts.digest.unwrap_or(reference).parse::<ImageId>() {
            Ok(id) => id,
            Err(_) if parts.digest.is_some() => return None,
            Err(_) => {
                let key = parts.key();
                let named = heard_of().filter_map(|(_, h)| {
                    let id = h.names.get(&key)?;
                    Some((*h.images.get(id)?, *id))
                });
                match named.max() {
                    Some((_, id)) => id,
                    None => beginning(reference, heard_of().map(|(_, h)| h))?,
                }
            }
        };
        let nodes: BTreeSet<NodeId> = heard_of()
            .filter(|(_, h)| h.images.contains_key(&id))
            .map(|(node, _)| *node)
            .collect();
        (!nodes.is_empty()).then_some(Found { id, nodes })
    }
}

/// The one image whose id begins with these digits.
fn beginning<'a>(text: &str, all: impl Iterator<Item = &'a Holdings>) -> Option<ImageId> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() < DIGITS_MIN || digits.len() > 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let filled = |with: &str| {
        let padded = format!("sha256:{digits}{}", with.repeat(64 - digits.len()));
        padded.parse::<ImageId>().ok()
    };
    let (from, to) = (filled("0")?, filled("f")?);
    let ids: BTreeSet<ImageId> = all
        .flat_map(|h| h.images.range(from..=to))
        .map(|(id, _)| *id)
        .collect();
    match (ids.first(), ids.len()) {
        (Some(id), 1) => Some(*id),
        (Some(_) | None, _) => None,
    }
}

/// Whom a node asks for an image, in this order: every asking node has an order of its own, so that many of them do not
/// all ask the same one.
pub fn sources(asking: NodeId, holders: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let mut list: Vec<NodeId> = holders.iter().copied().filter(|n| *n != asking).collect();
    list.sort_by_key(|source| (mixed(asking, *source), *source));
    list.truncate(SOURCES_MAX);
    list
}

/// A number that says nothing about the two it is made of (FNV-1a, with a last mix so that the high bits move too).
fn mixed(a: NodeId, b: NodeId) -> u64 {
    let bytes = a.0.to_le_bytes().into_iter().chain(b.0.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ImageId {
        ImageId([n; 32])
    }

    fn held(n: u8, created: u64, names: &[&str]) -> HeldImage {
        HeldImage {
            id: id(n),
            created: Timestamp(created),
            names: names.iter().map(|n| (*n).to_owned()).collect(),
        }
    }

    fn cluster() -> Inventory {
        let mut all = Inventory::default();
        let nodes = [
            (
                1,
                vec![held(1, 10, &["web:1", "web:latest"]), held(2, 20, &["db:1"])],
            ),
            (2, vec![held(1, 10, &["web:1"]), held(3, 30, &["web:latest"])]),
            (3, vec![held(1, 10, &[]), held(4, 20, &["db:1", "shop/a:1"])]),
            (9, vec![held(5, 99, &["web:1", "gone:1"])]),
        ];
        for (node, images) in nodes {
            all.report(NodeId(node), images).unwrap();
        }
        all
    }

    #[test]
    fn a_reference_means_one_image_and_those_who_hold_it() {
        let all = cluster();
        let heard = |node: NodeId| node != NodeId(9);
        let full = id(1).to_string();
        type Row<'a> = (&'a str, &'a str, Option<(u8, &'a [u128])>);
        let rows: &[Row<'_>] = &[
            (
                "a name; also those who have it without a name",
                "web:1",
                Some((1, &[1, 2, 3])),
            ),
            ("no tag is latest; the newest of two", "web", Some((3, &[2]))),
            ("as Docker writes it", "docker.io/library/web", Some((3, &[2]))),
            ("equally old: the larger id", "db:1", Some((4, &[3]))),
            ("a path", "shop/a:1", Some((4, &[3]))),
            ("an id", &full, Some((1, &[1, 2, 3]))),
            ("the beginning of one", "03030303", Some((3, &[2]))),
            ("too little of one", "030", None),
            ("a silent node's", "gone:1", None),
            ("nobody's", "nosuch:1", None),
            ("another tag", "db:2", None),
            ("nothing", "", None),
            ("a digest of another kind", "web:1@sha512:00", None),
            ("half a digest", "web:1@sha256:00", None),
        ];
        for (name, reference, want) in rows {
            let want = want.map(|(n, nodes)| Found {
                id: id(n),
                nodes: nodes.iter().map(|n| NodeId(*n)).collect(),
            });
            assert_eq!(all.resolve(reference, heard), want, "{name}");
        }
        let pinned = format!("web:latest@{}", id(1));
        let found = all.resolve(&pinned, heard).expect("pinned to the old one");
        assert_eq!(found.id, id(1), "a digest stays what the name once meant");
        assert_eq!(all.resolve(&format!("web:1@{}", id(7)), heard), None);
    }

    #[test]
    fn the_beginning_of_several_ids_is_none() {
        let mut all = Inventory::default();
        let (mut a, mut b) = ([0xaa; 32], [0xaa; 32]);
        (a[31], b[31]) = (1, 2);
        let image = |id| HeldImage {
            id: ImageId(id),
            created: Timestamp(1),
            names: Vec::new(),
        };
        all.report(NodeId(1), vec![image(a), image(b)]).unwrap();
        assert_eq!(all.resolve("aaaaaa", |_| true), None);
        let whole = ImageId(a).to_string();
        assert_eq!(all.resolve(&whole[7..], |_| true).map(|f| f.id), Some(ImageId(a)));
    }

    #[test]
    fn a_report_replaces_the_one_before_and_is_bounded() {
        let mut all = cluster();
        all.report(NodeId(2), vec![held(6, 5, &["new:1"])]).unwrap();
        assert_eq!(all.resolve("web", |_| true).map(|f| f.id), Some(id(1)));
        let name = |n: usize| format!("n{n}:1");
        let many = |images: usize, names: usize| {
            let mut list: Vec<HeldImage> = (0..images)
                .map(|i| {
                    let mut bytes = [0; 32];
                    bytes[..8].copy_from_slice(&(i as u64).to_le_bytes());
                    HeldImage {
                        id: ImageId(bytes),
                        created: Timestamp(1),
                        names: Vec::new(),
                    }
                })
                .collect();
            list[0].names = (0..names).map(name).collect();
            list
        };
        let rows = [
            (
                "as many as possible",
                many(IMAGES_HELD_MAX, IMAGE_NAMES_MAX),
                true,
            ),
            ("an image more", many(IMAGES_HELD_MAX + 1, 0), false),
            ("a name more", many(1, IMAGE_NAMES_MAX + 1), false),
            (
                "a name that is too long",
                vec![held(1, 1, &[&"x".repeat(IMAGE_MAX + 1)])],
                false,
            ),
        ];
        for (what, images, taken) in rows {
            all.report(NodeId(2), vec![held(6, 5, &["new:1"])]).unwrap();
            assert_eq!(all.report(NodeId(2), images).is_ok(), taken, "{what}");
            let still = all.resolve("new:1", |_| true).is_some();
            assert_eq!(still, !taken, "{what}: a refused report changes nothing");
        }
        all.retain(|node| node == NodeId(1));
        assert_eq!(all.resolve("shop/a:1", |_| true), None);
    }

    #[test]
    fn names_of_the_whole_cluster_are_bounded() {
        let mut all = Inventory::default();
        let names: Vec<String> = (0..IMAGE_NAMES_MAX).map(|n| format!("{n:0>512}")).collect();
        let image = || HeldImage {
            names: names.clone(),
            ..held(1, 1, &[])
        };
        let room = NAMES_BYTES_MAX / (IMAGE_NAMES_MAX * IMAGE_MAX);
        for node in 0..room {
            assert_eq!(all.report(NodeId(node as u128), vec![image()]), Ok(()), "{node}");
        }
        assert_eq!(
            all.report(NodeId(999), vec![image()]),
            Err(InventoryError::Cluster)
        );
        assert_eq!(
            all.report(NodeId(0), vec![image()]),
            Ok(()),
            "its own earlier report does not count"
        );
    }

    #[test]
    fn load_is_spread_over_the_sources() {
        let holders: BTreeSet<NodeId> = (0..20).map(NodeId).collect();
        let mut first: BTreeMap<NodeId, usize> = BTreeMap::new();
        for asking in 100..300 {
            let list = sources(NodeId(asking), &holders);
            assert_eq!(list.len(), SOURCES_MAX);
            assert_eq!(
                list,
                sources(NodeId(asking), &holders),
                "always the same for one node"
            );
            *first.entry(list[0]).or_default() += 1;
        }
        assert!(
            first.len() >= 18,
            "{} of 20 are asked first by somebody",
            first.len()
        );
        assert!(first.values().all(|n| *n <= 25), "{first:?}");
        assert!(
            !sources(NodeId(3), &holders).contains(&NodeId(3)),
            "nobody asks itself"
        );
        assert!(sources(NodeId(3), &BTreeSet::from([NodeId(3)])).is_empty());
    }
}
