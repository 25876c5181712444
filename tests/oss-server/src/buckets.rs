//! What may be done, and the operations on buckets.

use hyper::body::Incoming;

use crate::error::{ApiError, escape};
use crate::faults::Action;
use crate::reply::Reply;
use crate::request::{Call, Operation};
use crate::server::{Server, read};
use crate::sign::Caller;
use crate::store::Bucket;
use crate::{listing, objects, uploads};

/// Whether the caller may do this, and whether the bucket is to be found here.
pub(crate) fn authorize(server: &Server, call: &Call, caller: &Caller) -> Result<(), ApiError> {
    let buckets = server.store.buckets.read().expect("no panic while the lock is held");
    let bucket = buckets.get(&call.bucket);
    if let Some(bucket) = bucket
        && bucket.region != server.region
    {
        let endpoint = format!("oss-{}.aliyuncs.com", bucket.region);
        return Err(ApiError::wrong_endpoint(&call.bucket, &endpoint));
    }
    let reads = matches!(call.method.as_str(), "GET" | "HEAD");
    match caller {
        Caller::Key { allowed: true, .. } => Ok(()),
        Caller::Key { allowed: false, .. } => Err(ApiError::access_denied(
            "You have no right to access this object because of bucket acl.",
        )),
        Caller::Anonymous => match bucket {
            Some(bucket) if bucket.public && reads => Ok(()),
            None if !call.bucket.is_empty() => Err(ApiError::no_such_bucket(&call.bucket)),
            _ => Err(ApiError::access_denied("Anonymous access is forbidden for this operation.")),
        },
    }
}

/// Does what the request asks for.
pub(crate) async fn answer(
    server: &Server,
    call: &Call,
    body: Incoming,
    faults: &[Action],
) -> Result<Reply, ApiError> {
    let store = &server.store;
    match call.operation {
        Operation::ListObjectsV2 | Operation::ListObjects => list(server, call, faults),
        Operation::GetObject | Operation::HeadObject => objects::get(server, call, faults).await,
        Operation::GetObjectMeta => objects::meta(store, call),
        Operation::PutObject => objects::put(store, call, read(body).await?),
        Operation::DeleteObject => objects::delete(store, call),
        Operation::PutSymlink => objects::put_symlink(store, call),
        Operation::GetSymlink => objects::get_symlink(store, call),
        Operation::ListBuckets => Ok(all(server)),
        Operation::HeadBucket => with(server, call, |_| Reply::new(200)),
        Operation::GetBucketLocation => with(server, call, |bucket| {
            Reply::xml(format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                 <LocationConstraint>oss-{}</LocationConstraint>\n",
                bucket.region
            ))
        }),
        Operation::GetBucketInfo => with(server, call, |bucket| info(&call.bucket, bucket)),
        Operation::CopyObject => uploads::copy(store, call),
        Operation::InitiateMultipartUpload => uploads::initiate(server, call),
        Operation::UploadPart => uploads::part(store, call, read(body).await?),
        Operation::CompleteMultipartUpload => uploads::complete(store, call, &read(body).await?),
        Operation::ListParts => uploads::list_parts(store, call),
        Operation::AbortMultipartUpload => uploads::abort(store, call),
        Operation::AppendObject => uploads::append(store, call, read(body).await?),
        Operation::RestoreObject => uploads::restore(store, call),
        Operation::DeleteObjects => uploads::delete_many(store, call, &read(body).await?),
        Operation::PutBucket => create(server, call),
        Operation::DeleteBucket => delete(server, call),
        Operation::AssumeRole | Operation::InstanceMetadata | Operation::Other => {
            Err(ApiError::not_implemented())
        }
    }
}

fn list(server: &Server, call: &Call, faults: &[Action]) -> Result<Reply, ApiError> {
    let circle = faults.iter().fold(listing::Circle::None, |circle, fault| match fault {
        Action::RepeatToken => listing::Circle::Token,
        Action::RepeatPage => listing::Circle::Page,
        Action::BeginAnew => listing::Circle::Begin,
        Action::EmptyPages => listing::Circle::Empty,
        _ => circle,
    });
    let buckets = server.store.buckets.read().expect("no panic while the lock is held");
    let bucket = buckets.get(&call.bucket).ok_or_else(|| ApiError::no_such_bucket(&call.bucket))?;
    listing::page(bucket, call, circle, server.page).map(Reply::xml)
}

fn with(
    server: &Server,
    call: &Call,
    reply: impl FnOnce(&Bucket) -> Reply,
) -> Result<Reply, ApiError> {
    let buckets = server.store.buckets.read().expect("no panic while the lock is held");
    buckets.get(&call.bucket).map(reply).ok_or_else(|| ApiError::no_such_bucket(&call.bucket))
}

fn all(server: &Server) -> Reply {
    let buckets = server.store.buckets.read().expect("no panic while the lock is held");
    let mut out = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListAllMyBucketsResult>\n\
         <Owner><ID>1234567890</ID><DisplayName>1234567890</DisplayName></Owner>\n<Buckets>\n",
    );
    for (name, bucket) in buckets.iter() {
        out.push_str(&format!("<Bucket>{}</Bucket>\n", description(name, bucket)));
    }
    out.push_str("</Buckets>\n</ListAllMyBucketsResult>\n");
    Reply::xml(out)
}

fn description(name: &str, bucket: &Bucket) -> String {
    let region = &bucket.region;
    let mut escaped = String::new();
    escape(name, &mut escaped);
    format!(
        "<CreationDate>2025-01-01T00:00:00.000Z</CreationDate>\
         <ExtranetEndpoint>oss-{region}.aliyuncs.com</ExtranetEndpoint>\
         <IntranetEndpoint>oss-{region}-internal.aliyuncs.com</IntranetEndpoint>\
         <Location>oss-{region}</Location><Name>{escaped}</Name><Region>{region}</Region>\
         <StorageClass>Standard</StorageClass>"
    )
}

fn info(name: &str, bucket: &Bucket) -> Reply {
    let grant = if bucket.public { "public-read" } else { "private" };
    Reply::xml(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<BucketInfo>\n<Bucket>{}\
         <Owner><ID>1234567890</ID><DisplayName>1234567890</DisplayName></Owner>\
         <AccessControlList><Grant>{grant}</Grant></AccessControlList></Bucket>\n</BucketInfo>\n",
        description(name, bucket)
    ))
}

fn create(server: &Server, call: &Call) -> Result<Reply, ApiError> {
    let public = call.dialect_header("acl").is_some_and(|acl| acl.starts_with("public-read"));
    let mut buckets = server.store.buckets.write().expect("no panic while the lock is held");
    buckets.entry(call.bucket.clone()).or_insert_with(|| Bucket::new(&server.region, public));
    Ok(Reply::new(200))
}

fn delete(server: &Server, call: &Call) -> Result<Reply, ApiError> {
    let mut buckets = server.store.buckets.write().expect("no panic while the lock is held");
    let bucket = buckets.get(&call.bucket).ok_or_else(|| ApiError::no_such_bucket(&call.bucket))?;
    if !bucket.is_empty() {
        let message = "The bucket you tried to delete is not empty.";
        return Err(ApiError::new(409, "BucketNotEmpty", message, "0015-00000301"));
    }
    buckets.remove(&call.bucket);
    Ok(Reply::new(204))
}
