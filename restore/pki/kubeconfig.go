package pki

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// kubeconfig is a parsed kubeconfig with the scalars that may change. All else
// stays in doc as it was written.
type kubeconfig struct {
	doc      *yaml.Node
	clusters []kubeCluster
	contexts []kubeContext
	users    []kubeUser
	current  *yaml.Node
}

// Nodes are nil where the field is missing.
type kubeCluster struct{ server, tlsName, caData *yaml.Node }
type kubeContext struct{ name, user *yaml.Node }
type kubeUser struct{ name, certData, keyData, certFile, keyFile *yaml.Node }

// parseKubeconfig reads one. It is stricter than kubectl: no aliases, no second
// document, no key twice, since an edit of those could change something else.
func parseKubeconfig(data []byte) (*kubeconfig, error) {
	k, err := parseNodes(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return k, nil
}

func parseNodes(data []byte) (*kubeconfig, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	doc := new(yaml.Node)
	// What yaml says of a syntax error has no content in it but a line's number.
	if err := decoder.Decode(doc); err != nil {
		return nil, fmt.Errorf("no YAML: %w", err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	if err := plain(doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return nil, errors.New("it is empty")
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode || field(top, "clusters") == nil || field(top, "users") == nil {
		return nil, errors.New("no kubeconfig: clusters and users are missing")
	}
	k := &kubeconfig{doc: doc, current: scalar(top, "current-context")}
	for _, item := range items(top, "clusters") {
		c := field(item, "cluster")
		k.clusters = append(k.clusters, kubeCluster{scalar(c, "server"), scalar(c, "tls-server-name"), scalar(c, "certificate-authority-data")})
	}
	for _, item := range items(top, "contexts") {
		k.contexts = append(k.contexts, kubeContext{scalar(item, "name"), scalar(field(item, "context"), "user")})
	}
	for _, item := range items(top, "users") {
		u := field(item, "user")
		k.users = append(k.users, kubeUser{scalar(item, "name"), scalar(u, "client-certificate-data"), scalar(u, "client-key-data"),
			scalar(u, "client-certificate"), scalar(u, "client-key")})
	}
	return k, nil
}

// plain refuses what can't be edited in one place.
func plain(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode {
		return fmt.Errorf("line %d: an alias; write it out", n.Line)
	}
	seen := map[string]bool{}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if seen[child.Value] {
				return fmt.Errorf("line %d: a field that is there twice", child.Line)
			}
			seen[child.Value] = true
		}
		if err := plain(child); err != nil {
			return err
		}
	}
	return nil
}

func field(n *yaml.Node, name string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

// scalar returns a field that is a text and not empty.
func scalar(n *yaml.Node, name string) *yaml.Node {
	v := field(n, name)
	if v == nil || v.Kind != yaml.ScalarNode || v.Value == "" || v.Tag == "!!null" {
		return nil
	}
	return v
}

func items(n *yaml.Node, name string) []*yaml.Node {
	list := field(n, name)
	if list == nil || list.Kind != yaml.SequenceNode {
		return nil
	}
	return list.Content
}

func value(n *yaml.Node) string {
	if n == nil {
		return ""
	}
	return n.Value
}

func set(n *yaml.Node, text string) {
	n.Value, n.Tag = text, "!!str"
	n.Style &^= yaml.LiteralStyle | yaml.FoldedStyle
}

// inlinePEM reads a field of base64 that holds PEM.
func inlinePEM(n *yaml.Node) (bundle, error) {
	data, err := base64.StdEncoding.DecodeString(n.Value)
	if err != nil {
		return bundle{}, fmt.Errorf("line %d: %w: no base64", n.Line, ErrUnreadable)
	}
	b, err := parsePEM(data)
	if err != nil {
		return bundle{}, fmt.Errorf("line %d: %w", n.Line, err)
	}
	return b, nil
}

// encode writes the kubeconfig with kubeadm's indentation.
func (k *kubeconfig) encode() ([]byte, error) {
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	e.CompactSeqIndent()
	if err := errors.Join(e.Encode(k.doc), e.Close()); err != nil {
		return nil, fmt.Errorf("write the kubeconfig: %w", err)
	}
	return out.Bytes(), nil
}
