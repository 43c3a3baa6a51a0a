package realplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// API is a client of Kubernetes, as the cluster's administrator, from outside of
// the machines. It needs no file of a machine any more once it is made.
type API struct {
	server string // https://10.77.0.11:6443
	client *http.Client
}

// callLimit is how long a call of an API server may take.
const callLimit = 30 * time.Second

// API is a client of the machine's own API server, with the credentials that
// are in its admin.conf now.
func (m *Machine) API() *API {
	m.plane.t.Helper()
	a := m.ClusterAPI()
	a.server = "https://" + m.Address + ":" + apiPort
	return a
}

// ClusterAPI is a client of the server that the machine's admin.conf names: the
// controlPlaneEndpoint.
func (m *Machine) ClusterAPI() *API {
	t := m.plane.t
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.Root, "/etc/kubernetes/admin.conf"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			}
		}
	}
	if err := yaml.Unmarshal(text, &config); err != nil || len(config.Clusters) != 1 || len(config.Users) != 1 {
		t.Fatalf("%s: admin.conf is not of one cluster and one user: %v", m.Name, err)
	}
	pair, err := tls.X509KeyPair(config.Users[0].User.Certificate, config.Users[0].User.Key)
	if err != nil {
		t.Fatalf("%s: admin.conf: %v", m.Name, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(config.Clusters[0].Cluster.CA) {
		t.Fatalf("%s: admin.conf has no CA", m.Name)
	}
	return &API{server: config.Clusters[0].Cluster.Server, client: &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
		TLSHandshakeTimeout: callLimit, ResponseHeaderTimeout: callLimit, IdleConnTimeout: time.Minute,
	}}}
}

// StatusError is an answer other than success.
type StatusError struct {
	Code int
	Body string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("HTTP %d: %.500s", e.Code, strings.TrimSpace(e.Body))
}

// busy says whether an API server asked to come again: a custom resource that it
// has just heard of, too many requests.
func busy(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && status.Code == http.StatusTooManyRequests
}

// open sends a request whose answer the caller reads and closes.
func (a *API) open(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // the code says enough
		return nil, fmt.Errorf("%s %s%s: %w", method, a.server, path, &StatusError{resp.StatusCode, string(text)})
	}
	return resp.Body, nil
}

// call sends a request and reads its answer as JSON.
func (a *API) call(method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	answer, err := a.open(ctx, method, path, text)
	for busy(err) { // until the context ends
		time.Sleep(watchAgain)
		answer, err = a.open(ctx, method, path, text)
	}
	if err != nil {
		return err
	}
	defer answer.Close()
	if err := json.NewDecoder(answer).Decode(into); err != nil {
		return fmt.Errorf("%s %s%s: %w", method, a.server, path, err)
	}
	return nil
}

// Get reads a path as JSON.
func (a *API) Get(path string, into any) error { return a.call(http.MethodGet, path, nil, into) }

// Ready asks /readyz; nil: the API server is ready. It takes 2 s at most.
func (a *API) Ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	answer, err := a.open(ctx, http.MethodGet, "/readyz", nil)
	if err != nil {
		return err
	}
	return answer.Close()
}

// WaitReady waits until the machine's API server is ready.
func (m *Machine) WaitReady(a *API, limit time.Duration) {
	m.plane.t.Helper()
	m.plane.Wait(m.Name+"'s API server is ready", limit, func() string {
		if err := a.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
}

// Token mints a service account's token that is valid for an hour.
func (a *API) Token(namespace, account string) (string, error) {
	var answer struct{ Status struct{ Token string } }
	err := a.call(http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts/"+account+"/token", map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": map[string]any{"expirationSeconds": 3600},
	}, &answer)
	return answer.Status.Token, err
}

// Review asks for whom a token stands.
func (a *API) Review(token string) (user string, err error) {
	var answer struct {
		Status struct {
			Authenticated bool
			Error         string
			User          struct{ Username string }
		}
	}
	err = a.call(http.MethodPost, "/apis/authentication.k8s.io/v1/tokenreviews", map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": map[string]any{"token": token},
	}, &answer)
	if err == nil && !answer.Status.Authenticated {
		err = fmt.Errorf("the token is not valid: %s", answer.Status.Error)
	}
	return answer.Status.User.Username, err
}
