# lifeboat as a container image: one static binary and nothing else.
#
# GO_IMAGE builds it; BASE_IMAGE is what it runs on. The default base is empty:
# mount CA certificates and the host's files where they are needed, or use a
# base that has certificates, such as gcr.io/distroless/static.
ARG GO_IMAGE=golang:1.26
ARG BASE_IMAGE=scratch

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w -X main.buildVersion=${VERSION}" -o /out/lifeboat ./cmd/lifeboat \
 && mkdir -p -m 0700 /out/state && mkdir -m 1777 /out/tmp

FROM ${BASE_IMAGE}
COPY --from=build /out/lifeboat /lifeboat
COPY --from=build --chown=65532:65532 /out/state /var/lib/lifeboat
COPY --from=build /out/tmp /tmp
# Reading stores and taking etcd backups needs no root. Capturing or restoring a
# node's files does, since only root reads private keys: run with --user 0.
USER 65532:65532
ENTRYPOINT ["/lifeboat"]
