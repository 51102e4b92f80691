// Command kedge-temporal-ui serves Temporal's stock web UI on a Unix socket, for `kedge ui`.
//
// The stock ui-server listens on a TCP port and asks nobody who he is, so every user of the machine could use the client
// certificate that it holds. A socket in a folder of mode 0700 is reached by one user's processes alone; `kedge ui`
// stands in front of it, with a sign-in. It ends when its standard input does, and so with whoever started it.
//
//	kedge-temporal-ui CONFIG SOCKET
package main

import (
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"gopkg.in/yaml.v3"

	"github.com/temporalio/ui-server/v2/server/api"
	"github.com/temporalio/ui-server/v2/server/config"
	"github.com/temporalio/ui-server/v2/server/headers"
	"github.com/temporalio/ui-server/v2/server/route"
	"github.com/temporalio/ui-server/v2/server/version"
	"github.com/temporalio/ui-server/v2/ui"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("kedge-temporal-ui " + version.UIVersion)
		return
	}
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: kedge-temporal-ui CONFIG SOCKET")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(file, socket string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var cfg config.Config
	if err := yaml.Unmarshal(content, &cfg); err != nil {
		return err
	}
	provider, err := config.NewConfigProviderWithRefresh(&cfg)
	if err != nil {
		return err
	}
	assets, err := ui.Assets()
	if err != nil {
		return err
	}
	assets, err = fs.Sub(assets, "local")
	if err != nil {
		return err
	}

	e := echo.New()
	e.Use(middleware.Recover())
	e.Pre(route.PublicPath(cfg.PublicPath))
	// No header of a request goes on to the server: who may call it is the certificate's matter.
	forwarded := []api.Middleware{headers.WithForwardHeaders([]string{"Caller-Type"})}
	if err := route.SetAPIRoutes(e, provider, forwarded); err != nil {
		return err
	}
	if err := route.SetUIRoutes(e, cfg.PublicPath, assets); err != nil {
		return err
	}
	route.SetRenderRoute(e, cfg.PublicPath)

	syscall.Umask(0o077)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return http.Serve(listener, e)
}
