//! Users and groups of an image, from its own `/etc/passwd` and `/etc/group`.
//!
//! The files are hostile text: bounded, parsed by hand, never handed to the C library's lookup,
//! which would load code that the files name.

use stackd_shim::protocol::IDS_PER_STACK;

/// One past the highest id that a container may use. The last of a stack's range is mapped in no
/// namespace: it owns them.
pub const ID_LIMIT: u32 = IDS_PER_STACK - 1;

/// The contents of an image's user files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserDatabase {
    /// `/etc/passwd`, empty where there is none.
    pub passwd: String,
    /// `/etc/group`, empty where there is none.
    pub group: String,
}

/// A user as the kernel wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups, sorted.
    pub groups: Vec<u32>,
    /// The home directory; `/` where none is known.
    pub home: String,
}

/// The image's user cannot be made out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such line in `/etc/passwd`.
    #[error("the image's user \"{0}\" is not in its /etc/passwd")]
    NoUser(String),
    /// No such line in `/etc/group`.
    #[error("the image's group \"{0}\" is not in its /etc/group")]
    NoGroup(String),
    /// The number does not fit into a stack's range.
    #[error("the image's user \"{0}\" is out of range: ids must be below {ID_LIMIT}")]
    OutOfRange(String),
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl UserDatabase {
    fn users(&self) -> impl Iterator<Item = PasswdLine<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let home = fields.nth(1).unwrap_or_default();
            (!name.is_empty()).then_some(PasswdLine { name, uid, gid, home })
        })
    }

    fn groups(&self) -> impl Iterator<Item = GroupLine<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            let members = fields.next().unwrap_or_default();
            (!name.is_empty()).then_some(GroupLine { name, gid, members })
        })
    }

    /// Reads `user[:group]`, each a name or a number; empty is root.
    ///
    /// A number needs no line in the files. Without a group, the user's own one holds, and the
    /// groups that name the user as a member are added; with one, it is the only one.
    pub fn resolve(&self, text: &str) -> Result<ResolvedUser, UserError> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let user = if user.is_empty() { "0" } else { user };
        let by_name = self.users().find(|line| line.name == user);
        let number = user.parse::<u32>().ok();
        let line =
            by_name.or_else(|| number.and_then(|uid| self.users().find(|line| line.uid == uid)));
        let (uid, own_gid, name, home) = match (&line, number) {
            (Some(line), _) => (line.uid, line.gid, Some(line.name), line.home),
            (None, Some(uid)) => (uid, 0, None, ""),
            (None, None) if user.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(UserError::OutOfRange(text.to_owned()));
            }
            (None, None) => return Err(UserError::NoUser(user.to_owned())),
        };

        let (gid, mut groups) = if group.is_empty() {
            let member_of = |line: &GroupLine<'_>| {
                name.is_some_and(|name| line.members.split(',').any(|member| member == name))
            };
            (own_gid, self.groups().filter(member_of).map(|line| line.gid).collect())
        } else {
            let known = self.groups().find(|line| line.name == group).map(|line| line.gid);
            let gid = known
                .or_else(|| group.parse().ok())
                .ok_or_else(|| UserError::NoGroup(group.to_owned()))?;
            (gid, Vec::new())
        };
        groups.sort_unstable();
        groups.dedup();
        if uid >= ID_LIMIT || gid >= ID_LIMIT {
            return Err(UserError::OutOfRange(text.to_owned()));
        }
        // A group beyond the range cannot exist inside; that the image lists one is no fault of
        // the process that is started.
        groups.retain(|gid| *gid < ID_LIMIT);
        let home = if home.starts_with('/') { home } else { "/" };
        Ok(ResolvedUser { uid, gid, groups, home: home.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> UserDatabase {
        UserDatabase {
            passwd:
                "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nweb:x:33:34:,,,:/var/www:/x\n\
                     1000:x:7:8::/seven:\nfar:x:70000:1::/:\n"
                    .to_owned(),
            group: "root:x:0:\nwheel:x:10:root,web\nlog:x:4:web\nwww:x:34:\nbad\nbig:x:99999:web\n"
                .to_owned(),
        }
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> ResolvedUser {
        ResolvedUser { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn names_and_numbers_are_looked_up_in_the_image() {
        for (text, expected) in [
            ("", user(0, 0, &[10], "/root")),
            ("root", user(0, 0, &[10], "/root")),
            ("web", user(33, 34, &[4, 10], "/var/www")),
            ("33", user(33, 34, &[4, 10], "/var/www")),
            ("web:log", user(33, 4, &[], "/var/www")),
            ("web:4", user(33, 4, &[], "/var/www")),
            ("web:1234", user(33, 1234, &[], "/var/www")),
            ("5000", user(5000, 0, &[], "/")),
            ("5000:5000", user(5000, 5000, &[], "/")),
            (":www", user(0, 34, &[], "/root")),
            ("1000", user(7, 8, &[], "/seven")),
            ("65534:65534", user(65_534, 65_534, &[], "/")),
        ] {
            assert_eq!(files().resolve(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_is_refused() {
        let text = |user: &str| files().resolve(user).unwrap_err().to_string();
        assert_eq!(text("nobody"), "the image's user \"nobody\" is not in its /etc/passwd");
        assert_eq!(text("web:nope"), "the image's group \"nope\" is not in its /etc/group");
        for user in ["far", "65535", "1:65535", "65536", "4294967296"] {
            assert!(text(user).contains("out of range"), "{user}");
        }
    }

    #[test]
    fn an_image_without_files_runs_as_root_or_by_number() {
        let none = UserDatabase::default();
        assert_eq!(none.resolve(""), Ok(user(0, 0, &[], "/")));
        assert_eq!(none.resolve("1000:1000"), Ok(user(1000, 1000, &[], "/")));
        assert!(none.resolve("web").is_err());
    }
}
