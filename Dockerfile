# lifeboat as a container image: one static binary, CA certificates, and nothing
# else; no shell.
#
# GO_IMAGE builds it: anything with Go, a shell and CA certificates. BASE_IMAGE is
# what it runs on; the default is empty. The same sources and Go version give the
# same binary in any folder at any time.
ARG GO_IMAGE=golang:1.26
ARG BASE_IMAGE=scratch

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags="-s -w -X main.buildVersion=${VERSION}" -o /out/lifeboat ./cmd/lifeboat \
 && mkdir -p -m 0700 /out/state && mkdir -m 1777 /out/tmp

FROM ${BASE_IMAGE}
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="lifeboat" \
      org.opencontainers.image.description="Keeps a Kubernetes control plane recoverable" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/lifeboat /lifeboat
COPY --from=build --chown=65532:65532 /out/state /var/lib/lifeboat
COPY --from=build /out/tmp /tmp
# Reading stores and taking etcd backups needs no root. Capturing or restoring a
# node's files does, since only root reads private keys: run with --user 0.
USER 65532:65532
ENTRYPOINT ["/lifeboat"]
CMD ["--help"]
