//! An [`ObjectStore`] of which only reading is left.

use std::fmt::{Debug, Display, Formatter};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::error::StoreError;

/// Objects that can be read.
#[async_trait]
pub(super) trait Readable: Display + Debug + Send + Sync + 'static {
    /// GET or HEAD, as [`ObjectStore::get_opts`].
    async fn read(&self, path: &Path, options: GetOptions) -> Result<GetResult>;
}

/// Readable objects as an [`ObjectStore`]; all but reading is not supported. Listings are
/// [`super::Source::list`]'s, because [`ObjectMeta`] cannot hold what they say.
#[derive(Debug)]
pub(super) struct ReadOnly<R>(pub(super) R);

impl<R: Display> Display for ReadOnly<R> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        Display::fmt(&self.0, f)
    }
}

fn unsupported(operation: &'static str) -> Error {
    Error::NotSupported { source: Box::new(StoreError::Unsupported(operation)) }
}

#[async_trait]
impl<R: Readable> ObjectStore for ReadOnly<R> {
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.read(path, options).await
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(unsupported("put"))
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("put"))
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        futures::stream::once(async { Err(unsupported("delete")) }).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        futures::stream::once(async { Err(unsupported("list by path")) }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(unsupported("list by path"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unsupported("copy"))
    }
}
