//! Host-kind objects whose user-kind object is gone: a request of an earlier controller that the API server took very late, or an
//! object whose finalizer somebody took off by hand.
//!
//! To delete such a Domain is to stop its guest, and to delete such a Volume is to do with its data what the disk's `reclaim` says,
//! so what the mirrors show is not enough: the server is asked first, as Kubernetes' garbage collector asks for owners. It is asked
//! for a list, because it refuses to list a kind that it does not know, while it says of a single object of such a kind that there is
//! none.

use crate::{
    context::Context,
    error::Error,
    view::{is_deleting, uid},
    watched::Watched,
};
use kubexen_runtime::Key;
use std::sync::Arc;
use tracing::info;

/// Deletes those of the objects that are for a `User` of this name that is gone. `user_uid` says which one an object is for.
///
/// # Errors
/// When the server cannot be asked, or refuses.
pub(crate) async fn remove<User: Watched, Object: Watched>(
    context: &Context,
    key: &Key,
    mut objects: Vec<Arc<Object>>,
    user_uid: impl Fn(&Object) -> &str,
) -> Result<(), Error> {
    let is_orphan = |object: &Object, user: Option<&User>| {
        user.map(uid) != Some(user_uid(object)) && !is_deleting(object)
    };
    let seen = User::mirror(&context.view).get(key);
    objects.retain(|object| is_orphan(object, seen.as_deref()));
    if objects.is_empty() {
        return Ok(());
    }
    let users: Vec<User> = context.list_named(&key.name).await?;
    let user = users.into_iter().find(|user| Key::of(user) == *key);
    for object in objects.iter().filter(|object| is_orphan(object, user.as_ref())) {
        let (kind, of) = (Object::kind(&()), User::kind(&()));
        info!(object = %Key::of(&**object), %kind, "deleted: the {of} that it is for is gone");
        context.delete(&**object).await?;
    }
    if let Some(user) = user {
        context.found(user);
    }
    Ok(())
}
