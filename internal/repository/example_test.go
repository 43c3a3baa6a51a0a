package repository_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/storage/memory"
)

// One node's files, put and committed, found and verified.
func Example() {
	ctx := context.Background()
	signer, _ := manifest.GenerateSigner(rand.Reader, "cp1")
	trust := &manifest.Trust{Cluster: "prod-k3x9m2q7", Verifiers: []manifest.Verifier{
		{Key: signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}},
	}}
	repo, err := repository.Open(memory.New(), repository.Options{Trust: trust, Signer: signer, Name: "memory:"})
	if err != nil {
		fmt.Println(err)
		return
	}

	id, _ := manifest.NewID(rand.Reader)
	sealed := []byte("what seal.NewWriter wrote")
	name := repository.ObjectName("hosts/cp1", id, "files.tar.zst.age")
	if err := repo.PutObject(ctx, name, bytes.NewReader(sealed), time.Time{}); err != nil {
		fmt.Println(err)
		return
	}
	done, err := repo.Commit(ctx, &manifest.Manifest{
		Chain: "hosts/cp1", Kind: manifest.KindFiles, ID: id, Created: time.Now(),
		Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"}, Host: &manifest.Host{Node: "cp1", Files: 1},
		Objects: []manifest.Object{{Name: name, Role: manifest.RoleFiles, Size: int64(len(sealed)), SHA256: sha256.Sum256(sealed), PlainSize: 40}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	latest, err := repo.Resolve(ctx, "hosts/cp1", repository.Point{})
	fmt.Println("place", uint64(done.Sequence), "latest is ours:", latest.ID == id, err)
	report, err := repo.Verify(ctx, repository.VerifyOptions{})
	fmt.Println(report.Objects, "object", err, report.Err())
	// Output:
	// place 1 latest is ours: true <nil>
	// 1 object <nil> <nil>
}
